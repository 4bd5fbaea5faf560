"""Convolutions in the one layout that XLA's CPU backend computes fast inside loops.

XLA brings convolutions into its library's layout only outside loops; in the body of a `lax.scan`, the transposed
layouts that gradients have fall back to naive code, 14 times slower for a small residual network
(https://github.com/jax-ml/jax/issues/12868; measured by `benchmarks/loops.py`). So they are rewritten here, in the
jaxpr, which works for every network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

# Calls that compute what their inner jaxpr says; rules for differentiating them have served by now.
_CALLS = frozenset(("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call"))


def channels_last(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with all its convolutions, gradients included, computed in NHWC x HWIO layout.

    Apply it to the outermost function (after `jax.grad`). The values do not change. Convolutions inside the function's
    own loops and `jax.checkpoint` regions are left as they are.
    """

    def rewritten(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        leaves = _run(closed.jaxpr, closed.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), leaves)

    return rewritten


def _run(jaxpr: Any, consts: Any, args: Any) -> list[Any]:
    values = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        inner = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
        if eqn.primitive.name == "conv_general_dilated":
            lhs, rhs = operands
            results = [_convolve(lhs, rhs, eqn.params)]
        elif eqn.primitive.name in _CALLS and hasattr(inner, "consts"):
            results = _run(inner.jaxpr, inner.consts, operands)
        else:
            with eqn.ctx.manager:
                outputs = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
            results = outputs if eqn.primitive.multiple_results else [outputs]
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _convolve(lhs: jax.Array, rhs: jax.Array, params: dict[str, Any]) -> jax.Array:
    numbers = params["dimension_numbers"]
    spatial = lhs.ndim - 2
    (batch, channel, *lhs_spatial), (out, into, *rhs_spatial) = numbers.lhs_spec, numbers.rhs_spec
    lhs = jnp.transpose(lhs, (batch, *lhs_spatial, channel))
    rhs = jnp.transpose(rhs, (*rhs_spatial, into, out))
    last = spatial + 1
    canonical = jax.lax.ConvDimensionNumbers(
        lhs_spec=(0, last, *range(1, last)),
        rhs_spec=(last, spatial, *range(spatial)),
        out_spec=(0, last, *range(1, last)),
    )
    result = jax.lax.conv_general_dilated_p.bind(lhs, rhs, **params | {"dimension_numbers": canonical})
    order = [0] * result.ndim
    for position, axis in zip(numbers.out_spec, (0, last, *range(1, last)), strict=True):
        order[position] = axis
    return jnp.transpose(result, order)
