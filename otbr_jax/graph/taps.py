"""What a layer sees: a network's function that also gives the inputs of layers, whatever framework wrote it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from otbr_jax.errors import InputError
from otbr_jax.types import Variables, named_leaves

_CALLS = frozenset("jit pjit closed_call core_call remat remat2 checkpoint".split())
_LAYOUT = frozenset("convert_element_type transpose reshape copy squeeze expand_dims stop_gradient".split())


def tapped(
    function: Callable[[Variables, jax.Array], Any], names: Collection[str]
) -> Callable[[Variables, jax.Array], tuple[Any, dict[str, jax.Array]]]:
    """A network's function that also gives what it multiplies kernels with. Pure; jits; differentiates.

    Args:
      function: `(variables, images) -> anything`, such as `Network.apply`.
      names: of kernels, `Layer.name`.

    Returns:
      `(variables, images) -> (what the function gives, {name: input})`; an input is `[n, ..., c]`, channels last. Of a
      kernel that is used several times it is the last one.

    Raises:
      InputError: when traced, names a kernel that no convolution or product uses.
    """
    wanted = frozenset(names)

    def both(variables: Variables, images: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(variables, images)
        found: dict[str, jax.Array] = {}
        origins = [*named_leaves(variables), None]
        leaves = _run(closed.jaxpr, closed.consts, [*jax.tree.leaves(variables), images], origins, found, wanted)
        missing = sorted(wanted - set(found))
        if missing:
            raise InputError(f"layer: expected the kernel of a convolution or product, found {missing[0]!r}")
        return jax.tree.unflatten(jax.tree.structure(shape), leaves), found

    return both


def _run(
    jaxpr: Any, consts: Any, args: Any, origins: Any, found: dict[str, jax.Array], wanted: Collection[str]
) -> list[Any]:
    """The values of a jaxpr; `origins` names the array that each argument is, in whatever layout."""
    values = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, args, strict=True))
    names = {var: name for var, name in zip(jaxpr.invars, origins, strict=True) if name is not None}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    def origin(atom: Any) -> str | None:
        return None if isinstance(atom, Literal) else names.get(atom)

    for eqn in jaxpr.eqns:
        operands, of = [read(atom) for atom in eqn.invars], [origin(atom) for atom in eqn.invars]
        primitive, inner = eqn.primitive.name, eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
        if primitive in _CALLS and inner is not None:
            closed = hasattr(inner, "consts")
            body = inner.jaxpr if closed else inner
            results = _run(body, inner.consts if closed else (), operands, of, found, wanted)
        else:
            if primitive == "conv_general_dilated" and of[1] in wanted:
                batch, channel, *spatial = eqn.params["dimension_numbers"].lhs_spec
                found[str(of[1])] = jnp.transpose(operands[0], (batch, *spatial, channel))
            elif primitive == "dot_general":
                for own, other in ((0, 1), (1, 0)):
                    if of[own] in wanted:
                        last = eqn.params["dimension_numbers"][0][other]
                        axes = [axis for axis in range(operands[other].ndim) if axis not in last]
                        found[str(of[own])] = jnp.transpose(operands[other], (*axes, *last))
            with eqn.ctx.manager:
                outputs = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
            results = outputs if eqn.primitive.multiple_results else [outputs]
            if primitive in _LAYOUT and of[0] is not None:
                names[eqn.outvars[0]] = of[0]
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]
