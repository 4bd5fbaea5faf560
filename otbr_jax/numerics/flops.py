"""What it takes to pass one picture through a network: operations, and what its layers put out."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.graph.evaluate import inner_programs
from otbr_jax.types import Network, Variables


class Flops(NamedTuple):
    """Of one picture, in evaluation mode; convolutions and products of matrices alone.

    Attributes:
      operations: additions and multiplications.
      bytes: of what they put out, which is what a gradient has to keep at least.
    """

    operations: float
    bytes: float


def flops_of(network: Network, variables: Variables) -> Flops:
    """What passing one picture takes; traces the network and computes nothing.

    Args:
      network: the functions of the network.
      variables: its variables, or their shapes; may be traced.
    """
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    picture = jax.ShapeDtypeStruct((1, *network.image_shape), jnp.float32)
    return _count(jax.make_jaxpr(network.answer)(like, picture))


def _count(program: Any) -> Flops:
    operations, size = 0.0, 0.0
    for eqn in program.eqns:
        if eqn.primitive.name in ("conv_general_dilated", "dot_general"):
            out = eqn.outvars[0].aval
            operations += 2 * out.size * _summed(eqn)
            size += out.size * out.dtype.itemsize
        times = eqn.params.get("length", 1)
        for inner in inner_programs(eqn):
            found = _count(inner)
            operations, size = operations + times * found.operations, size + times * found.bytes
    return Flops(operations, size)


def _summed(eqn: Any) -> int:
    """Over how many products each number that is put out is a sum."""
    left, right = (variable.aval.shape for variable in eqn.invars)
    if eqn.primitive.name == "dot_general":
        return math.prod(left[axis] for axis in eqn.params["dimension_numbers"][0][0])
    out_axis = eqn.params["dimension_numbers"].rhs_spec[0]
    return math.prod(right) // right[out_axis]
