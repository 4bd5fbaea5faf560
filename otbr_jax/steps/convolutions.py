"""Convolutions in the forms that XLA's CPU backend computes fast.

XLA brings convolutions into its library's layout only outside loops; in the body of a `lax.scan`, the transposed
layouts that gradients have fall back to naive code, 14 times slower for a small residual network
(https://github.com/jax-ml/jax/issues/12868; measured by `benchmarks/loops.py`). In every layout kernel gradients are
slow: convolutions with windows as large as the images. On CPUs the large ones become matrix products here (measured by
`benchmarks/unlearning_step.py`). Both is done in the jaxpr, which works for every network.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

# Calls that compute what their inner jaxpr says; rules for differentiating them have served by now.
_CALLS = frozenset(("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call"))

POSITIONS = 1024
"""Positions of the images that one matrix product sums over: as many as its patches stay in a core's cache."""

# Below, XLA's convolutions are as fast, or up to twice: the products have too few columns. They compile faster, too.
_FEWEST_CHANNELS = 64
# Kernels with more positions than a 7x7 one has (patch embeddings) would need as many slices of every image.
_LARGEST_KERNEL = 49


def channels_last(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with all its convolutions, gradients included, in the form that is fast on the device it runs on.

    That is NHWC x HWIO layout; on CPUs large kernel gradients are sums of matrix products. Apply it to the outermost
    function (after `jax.grad`). The values change by no more than rounding. Convolutions inside the function's own
    loops and `jax.checkpoint` regions are left as they are. Where devices share the images nothing becomes a product:
    they would have to send each other chunks of images.
    """

    def rewritten(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        convolve = _canonical if _is_shared(closed.jaxpr) else _convolve
        leaves = _run(closed.jaxpr, closed.consts, jax.tree.leaves(args), convolve)
        return jax.tree.unflatten(jax.tree.structure(shape), leaves)

    return rewritten


def _run(jaxpr: Any, consts: Any, args: Any, convolve: Callable[..., jax.Array]) -> list[Any]:
    values = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        inner = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
        if eqn.primitive.name == "conv_general_dilated":
            lhs, rhs = operands
            results = [convolve(lhs, rhs, eqn.params, eqn.outvars[0].aval)]
        elif eqn.primitive.name in _CALLS and hasattr(inner, "consts"):
            results = _run(inner.jaxpr, inner.consts, operands, convolve)
        else:
            with eqn.ctx.manager:
                outputs = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
            results = outputs if eqn.primitive.multiple_results else [outputs]
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _is_shared(jaxpr: Any) -> bool:
    """Whether arrays are split over devices in it."""
    for eqn in jaxpr.eqns:
        inner = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
        if eqn.primitive.name == "sharding_constraint" or (
            hasattr(inner, "consts") and hasattr(inner, "jaxpr") and _is_shared(inner.jaxpr)
        ):
            return True
    return False


def _convolve(lhs: jax.Array, rhs: jax.Array, params: dict[str, Any], result: Any) -> jax.Array:
    convolution = partial(_canonical, params=params, result=result)
    if not _better_as_products(params, result):
        return convolution(lhs, rhs)
    products = partial(summed_products, params=params, result=result)
    found: jax.Array = jax.lax.platform_dependent(lhs, rhs, cpu=products, default=convolution)
    return found


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
    found = jax.lax.conv_general_dilated_p.bind(lhs, rhs, **params | {"dimension_numbers": canonical})
    return _ordered(found, (0, last, *range(1, last)), numbers.out_spec)


def _better_as_products(params: dict[str, Any], result: Any) -> bool:
    """Whether it is a kernel gradient, which sums over the leading axis of both operands, the images, and a large one.

    Grouped ones are not: their products would be small.
    """
    numbers = params["dimension_numbers"]
    return (
        numbers.lhs_spec[1] == numbers.rhs_spec[1] == 0
        and params["feature_group_count"] == params["batch_group_count"] == 1
        and result.shape[numbers.out_spec[1]] >= _FEWEST_CHANNELS
        and math.prod(result.shape[axis] for axis in numbers.out_spec[2:]) <= _LARGEST_KERNEL
        and jnp.issubdtype(result.dtype, jnp.floating)
    )


def summed_products(
    lhs: jax.Array, rhs: jax.Array, *, params: dict[str, Any], result: Any, positions: int = POSITIONS
) -> jax.Array:
    """A convolution as matrix products, images' patches times `rhs`, summed over a few images at a time.

    Args:
      lhs: the layer's input, its images along the axis that `params` calls the feature.
      rhs: the gradient with respect to the layer's output.
      params: of the kernel gradient's `conv_general_dilated` without groups.
      result: its shape and dtype.
      positions: how many positions a product sums over, at least one image's.

    Returns:
      What the convolution is, but for rounding; sums are at least in float32.
    """
    numbers = params["dimension_numbers"]
    (batch, channel, *lhs_spatial), (out, into, *rhs_spatial) = numbers.lhs_spec, numbers.rhs_spec
    lhs = jnp.transpose(lhs, (channel, *lhs_spatial, batch))
    rhs = jnp.transpose(rhs, (into, *rhs_spatial, out))
    window, kernel = rhs.shape[1:-1], tuple(result.shape[axis] for axis in numbers.out_spec[2:])
    chunks = math.ceil(len(rhs) / max(1, positions // max(1, math.prod(window))))
    lhs, rhs = _in_chunks(lhs, chunks), _in_chunks(rhs, chunks)
    summed = tuple(range(1 + len(window)))

    def product(chunk: Any) -> jax.Array:
        images, gradients = (jax.lax.dynamic_index_in_dim(part, chunk, keepdims=False) for part in (lhs, rhs))
        return jax.lax.dot_general(
            _patches(images, window, kernel, params),
            gradients,
            ((summed, summed), ((), ())),
            precision=params["precision"],
            preferred_element_type=jnp.promote_types(result.dtype, jnp.float32),
        )

    # From the first product on, not from zeros: on a mapped axis these would be of another type.
    total = jax.lax.fori_loop(1, chunks, lambda chunk, total: total + product(chunk), product(0))
    total = total.reshape(*kernel, lhs.shape[-1], rhs.shape[-1]).astype(result.dtype)
    last = len(kernel) + 1
    return _ordered(total, (last - 1, last, *range(last - 1)), numbers.out_spec)


def _in_chunks(array: jax.Array, chunks: int) -> jax.Array:
    """`[n, ...]` as `[chunks, images, ...]`, filled up with zeros."""
    images = math.ceil(len(array) / chunks)
    filled = jnp.pad(array, [(0, chunks * images - len(array)), *[(0, 0)] * (array.ndim - 1)])
    return filled.reshape(chunks, images, *array.shape[1:])


def _patches(images: jax.Array, window: Any, kernel: Any, params: dict[str, Any]) -> jax.Array:
    """What each position of the kernel sees: `[n, *window, positions * channels]`."""
    padding = [(low, high, by - 1) for (low, high), by in zip(params["padding"], params["lhs_dilation"], strict=True)]
    images = jax.lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *padding, (0, 0, 0)])

    def seen(position: tuple[int, ...]) -> jax.Array:
        starts = [at * stride for at, stride in zip(position, params["window_strides"], strict=True)]
        spans = zip(starts, window, params["rhs_dilation"], strict=True)
        along = [slice(start, start + (size - 1) * by + 1, by) for start, size, by in spans]
        return images[:, *along]

    return jnp.concatenate([seen(position) for position in itertools.product(*map(range, kernel))], axis=-1)


def _ordered(result: jax.Array, axes: tuple[int, ...], spec: tuple[int, ...]) -> jax.Array:
    """Axes (batch, feature, *spatial) of `result`, put where a convolution's `out_spec` has them."""
    order = [0] * result.ndim
    for position, axis in zip(spec, axes, strict=True):
        order[position] = axis
    return jnp.transpose(result, order)
