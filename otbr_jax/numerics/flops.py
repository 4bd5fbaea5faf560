"""FLOPs and sizes of activations of one image in a network."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.graph.evaluate import inner_programs
from otbr_jax.types import Network, Variables


class Flops(NamedTuple):
    """Of one image, in evaluation mode; convolutions and matrix products alone.

    Attributes:
      operations: additions and multiplications.
      bytes: of their outputs, which a gradient keeps at least.
    """

    operations: float
    bytes: float


def flops_of(network: Network, variables: Variables) -> Flops:
    """The FLOPs of one image; traces the network and computes nothing.

    Args:
      network: the functions of the network.
      variables: its variables, or their shapes; may be traced.
    """
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    image = jax.ShapeDtypeStruct((1, *network.image_shape), jnp.float32)
    return _count(jax.make_jaxpr(network.answer)(like, image))


def _count(program: Any) -> Flops:
    operations, size = 0.0, 0.0
    for eqn in program.eqns:
        if eqn.primitive.name in ("conv_general_dilated", "dot_general"):
            out = eqn.outvars[0].aval
            operations += 2 * out.size * _summed(eqn)
            size += out.size * out.dtype.itemsize
        times = eqn.params.get("length", 1)
        for inner in inner_programs(eqn):
            flops = _count(inner)
            operations, size = operations + times * flops.operations, size + times * flops.bytes
    return Flops(operations, size)


def _summed(eqn: Any) -> int:
    """The number of products in the sum of each output."""
    left, right = (variable.aval.shape for variable in eqn.invars)
    if eqn.primitive.name == "dot_general":
        return math.prod(left[axis] for axis in eqn.params["dimension_numbers"][0][0])
    out_axis = eqn.params["dimension_numbers"].rhs_spec[0]
    return math.prod(right) // right[out_axis]
