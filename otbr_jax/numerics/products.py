"""Large kernel gradients as matrix products, for CPUs."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp

POSITIONS = 1024
"""Image positions that one matrix product sums over: so many that its patches fit into a core's cache."""

# Below, XLA's convolutions are up to twice as fast, since the products have few columns. They also compile faster.
FEWEST_CHANNELS = 64
# Kernels with more positions than a 7x7 one has (patch embeddings) would need as many slices of every image.
_LARGEST_KERNEL = 49


def sums_well(params: dict[str, Any], result: Any) -> bool:
    """Whether a convolution is a large kernel gradient: a sum over the leading axis of both operands, the images.

    Grouped ones do not count: their products would be small.
    """
    numbers = params["dimension_numbers"]
    return (
        numbers.lhs_spec[1] == numbers.rhs_spec[1] == 0
        and params["feature_group_count"] == params["batch_group_count"] == 1
        and result.shape[numbers.out_spec[1]] >= FEWEST_CHANNELS
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
      positions: number of positions that a product sums over, at least one image's.

    Returns:
      The convolution's value, but for rounding; sums are at least in float32.
    """
    numbers = params["dimension_numbers"]
    (batch, channel, *lhs_spatial), (out, into, *rhs_spatial) = numbers.lhs_spec, numbers.rhs_spec
    lhs = jnp.transpose(lhs, (channel, *lhs_spatial, batch))
    rhs = jnp.transpose(rhs, (into, *rhs_spatial, out))
    window, kernel = rhs.shape[1:-1], tuple(result.shape[axis] for axis in numbers.out_spec[2:])
    images = max(1, positions // max(1, math.prod(window)))
    lhs, rhs = split_in_chunks(lhs, images), split_in_chunks(rhs, images)
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

    # Starts from the first product, not from zeros: on a mapped axis zeros would have another type.
    total = jax.lax.fori_loop(1, len(lhs), lambda chunk, total: total + product(chunk), product(0))
    total = total.reshape(*kernel, lhs.shape[-1], rhs.shape[-1]).astype(result.dtype)
    last = len(kernel) + 1
    return reorder(total, (last - 1, last, *range(last - 1)), numbers.out_spec)


def split_in_chunks(array: jax.Array, images: int) -> jax.Array:
    """`[n, ...]` as `[chunks, at most images, ...]`, padded with zeros."""
    chunks = math.ceil(len(array) / images)
    images = math.ceil(len(array) / chunks)
    padded = jnp.pad(array, [(0, chunks * images - len(array)), *[(0, 0)] * (array.ndim - 1)])
    return padded.reshape(chunks, images, *array.shape[1:])


def reorder(result: jax.Array, axes: tuple[int, ...], spec: tuple[int, ...]) -> jax.Array:
    """Transposes axes `(batch, feature, *spatial)` of `result` to the order of a convolution's `out_spec`."""
    order = [0] * result.ndim
    for position, axis in zip(spec, axes, strict=True):
        order[position] = axis
    return jnp.transpose(result, order)


def _patches(images: jax.Array, window: Any, kernel: Any, params: dict[str, Any]) -> jax.Array:
    """The inputs of each position of the kernel: `[n, *window, positions * channels]`."""
    padding = [(low, high, by - 1) for (low, high), by in zip(params["padding"], params["lhs_dilation"], strict=True)]
    images = jax.lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *padding, (0, 0, 0)])

    def inputs_of(position: tuple[int, ...]) -> jax.Array:
        starts = [at * stride for at, stride in zip(position, params["window_strides"], strict=True)]
        spans = zip(starts, window, params["rhs_dilation"], strict=True)
        along = [slice(start, start + (size - 1) * by + 1, by) for start, size, by in spans]
        return images[:, *along]

    return jnp.concatenate([inputs_of(position) for position in itertools.product(*map(range, kernel))], axis=-1)
