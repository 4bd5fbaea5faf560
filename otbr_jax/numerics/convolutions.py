"""Convolutions in forms that XLA's CPU backend computes fast.

XLA converts convolutions to its library's layout only outside loops; in the body of a `lax.scan`, the transposed
layouts that gradients have fall back to naive code, 14 times slower for a small residual network
(https://github.com/jax-ml/jax/issues/12868; measured by `benchmarks/loops.py`). Here all are in channels-last layout.
On CPUs large ones also become matrix products: 3x3 ones by `winograd`, other kernel gradients by `products`
(measured by `benchmarks/unlearning_step.py`). The jaxpr is rewritten, which works for every network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from otbr_jax.graph.evaluate import RECOMPUTED, equations, evaluate
from otbr_jax.numerics import products, winograd


def channels_last(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with all its convolutions, gradients included, in a form that is fast on the device.

    That is NHWC x HWIO layout; on CPUs large ones are matrix products. Apply it to the outermost function (after
    `jax.grad`). The values change by no more than rounding. Convolutions inside the function's own loops and
    `jax.checkpoint` regions are unchanged. Where devices share the images nothing becomes a product: that would need
    communication of chunks of images.
    """

    def rewrite(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        convolve = _canonical if _is_shared(closed.jaxpr) else _convolve

        def rule(eqn: Any, operands: Sequence[Any]) -> list[Any] | None:
            if eqn.primitive.name != "conv_general_dilated":
                return None  # calls are entered: their differentiation rules have been applied by now
            lhs, rhs = operands
            return [convolve(lhs, rhs, eqn.params, eqn.outvars[0].aval)]

        leaves = evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), rule, closed=RECOMPUTED)
        return jax.tree.unflatten(jax.tree.structure(shape), leaves)

    return rewrite


def _is_shared(program: Any) -> bool:
    """Whether the program splits arrays over devices."""
    return any(eqn.primitive.name == "sharding_constraint" for eqn in equations(program))


def _convolve(lhs: jax.Array, rhs: jax.Array, params: dict[str, Any], result: Any) -> jax.Array:
    convolution = partial(_canonical, params=params, result=result)
    form = _form(lhs, rhs, params, result)
    if form is None:
        return convolution(lhs, rhs)
    faster = partial(form, params=params, result=result)
    result_array: jax.Array = jax.lax.platform_dependent(lhs, rhs, cpu=faster, default=convolution)
    return result_array


def _form(lhs: Any, rhs: Any, params: dict[str, Any], result: Any) -> Callable[..., jax.Array] | None:
    """The function that computes a convolution faster on CPUs than XLA's own, or None."""
    if winograd.convolves_well(lhs, rhs, params, result):
        return winograd.convolution
    if winograd.sums_well(lhs, rhs, params, result):
        return winograd.kernel_gradient
    return products.summed_products if products.sums_well(params, result) else None


def _canonical(lhs: jax.Array, rhs: jax.Array, params: dict[str, Any], result: Any) -> jax.Array:
    """The convolution in NHWC x HWIO layout."""
    del result
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
    output = jax.lax.conv_general_dilated_p.bind(lhs, rhs, **params | {"dimension_numbers": canonical})
    return products.reorder(output, (0, last, *range(1, last)), numbers.out_spec)
