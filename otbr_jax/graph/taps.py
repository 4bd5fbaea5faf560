"""Taps: a network's function that also returns the inputs of layers, for networks of any framework."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.errors import InputError
from otbr_jax.graph.evaluate import CALLS, CUSTOM, Rule, compute, evaluate
from otbr_jax.types import Variables, named_leaves

_LAYOUT = frozenset("convert_element_type transpose reshape copy squeeze expand_dims stop_gradient".split())


def tap_inputs(
    function: Callable[[Variables, jax.Array], Any], names: Collection[str]
) -> Callable[[Variables, jax.Array], tuple[Any, dict[str, jax.Array]]]:
    """A function that also returns the inputs of kernels. Pure; jits; differentiates.

    Args:
      function: `(variables, images) -> anything`, such as `Network.apply`.
      names: of kernels, `Layer.name`.

    Returns:
      `(variables, images) -> (the function's result, {name: input})`; an input is `[n, ..., c]`, channels last; the
      last one for a kernel that is used several times.

    Raises:
      InputError: when traced, names a kernel that no convolution or product uses.
    """
    wanted = frozenset(names)

    def both(variables: Variables, images: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(variables, images)
        inputs_of: dict[str, jax.Array] = {}
        arrays = zip(jax.tree.leaves(variables), named_leaves(variables), strict=True)
        inputs = [*(_Named(array, name) for array, name in arrays), _Named(images)]
        leaves = evaluate(closed.jaxpr, closed.consts, inputs, _tapping(wanted, inputs_of), constant=_Named)
        missing = sorted(wanted - set(inputs_of))
        if missing:
            raise InputError(f"layer: expected the kernel of a convolution or product, found {missing[0]!r}")
        return jax.tree.unflatten(jax.tree.structure(shape), [leaf.array for leaf in leaves]), inputs_of

    return both


class _Named(NamedTuple):
    """An array, and the name of the array of the variables that it equals in some layout."""

    array: Any
    name: str | None = None


def _tapping(wanted: Collection[str], inputs_of: dict[str, jax.Array]) -> Rule:
    """A rule that computes arrays and stores the inputs of wanted kernels in `inputs_of`."""

    def rule(eqn: Any, operands: Sequence[_Named]) -> list[_Named] | None:
        primitive, names = eqn.primitive.name, [operand.name for operand in operands]
        if primitive in CALLS - CUSTOM:
            return None
        arrays = [operand.array for operand in operands]
        if primitive == "conv_general_dilated" and names[1] in wanted:
            batch, channel, *spatial = eqn.params["dimension_numbers"].lhs_spec
            inputs_of[str(names[1])] = jnp.transpose(arrays[0], (batch, *spatial, channel))
        elif primitive == "dot_general":
            for own, other in ((0, 1), (1, 0)):
                if names[own] in wanted:
                    last = eqn.params["dimension_numbers"][0][other]
                    axes = [axis for axis in range(arrays[other].ndim) if axis not in last]
                    inputs_of[str(names[own])] = jnp.transpose(arrays[other], (*axes, *last))
        name = names[0] if primitive in _LAYOUT else None
        return [_Named(array, name) for array in compute(eqn, arrays)]

    return rule
