"""3x3 convolutions and their kernel gradients in 2.25 times fewer multiplications, for CPUs.

Winograd's minimal filtering F(2x2, 3x3), by Lavin and Gray (2016, https://arxiv.org/abs/1509.09308): tiles of 4 x 4
pixels that overlap by two, and the kernel, are transformed; 16 matrix products follow, and a last transform gives
tiles of 2 x 2. Kernel gradients are the same, transposed. Larger tiles save more multiplications, but lose a digit in
float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from otbr_jax.numerics.products import FEWEST_CHANNELS, reorder, split_in_chunks

VALUES = 2**16
"""Tiles of one matrix product, times their channels: so many that their transforms fit into a core's cache."""

# Smaller images would be padded to twice their pixels. A result of 3 x 3 is a kernel gradient's.
_SMALLEST = 4
# The transforms of the paper's section 4.1 along one axis: B', G and A'.
_IMAGES = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
_KERNEL = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
_OUTPUTS = ((1, 1, 1, 0), (0, 1, -1, -1))


def convolves_well(lhs: Any, rhs: Any, params: dict[str, Any], result: Any) -> bool:
    """Whether `convolution` applies and is faster than XLA's: 3x3, in float32, nothing but padded, many channels."""
    images, _, *spatial = (result.shape[axis] for axis in params["dimension_numbers"].out_spec)
    out, into, *kernel = (rhs.shape[axis] for axis in params["dimension_numbers"].rhs_spec)
    return kernel == [3, 3] and _is_plain(lhs, rhs, params, result) and _is_large(into, out, images, spatial)


def sums_well(lhs: Any, rhs: Any, params: dict[str, Any], result: Any) -> bool:
    """Whether `kernel_gradient` applies and is faster: to the kernel gradients of such convolutions."""
    into, out, *kernel = (result.shape[axis] for axis in params["dimension_numbers"].out_spec)
    _, images, *spatial = (rhs.shape[axis] for axis in params["dimension_numbers"].rhs_spec)
    return kernel == [3, 3] and _is_plain(lhs, rhs, params, result) and _is_large(into, out, images, spatial)


def _is_plain(lhs: Any, rhs: Any, params: dict[str, Any], result: Any) -> bool:
    """Whether a convolution in two dimensions and float32 has no strides, dilations and groups."""
    return (
        lhs.dtype == rhs.dtype == result.dtype == jnp.float32
        and params["window_strides"] == params["lhs_dilation"] == params["rhs_dilation"] == (1, 1)
        and params["feature_group_count"] == params["batch_group_count"] == 1
    )


def _is_large(into: int, out: int, images: int, spatial: list[int]) -> bool:
    """Whether the products have enough columns and rows: these, to be worth the transform of the kernel."""
    return (
        min(into, out) >= FEWEST_CHANNELS
        and min(spatial) >= _SMALLEST
        and images * math.prod(spatial) >= max(into, out)
    )


def convolution(
    lhs: jax.Array, rhs: jax.Array, *, params: dict[str, Any], result: Any, values: int = VALUES
) -> jax.Array:
    """A 3x3 convolution, a few images at a time.

    Args:
      lhs: images.
      rhs: the kernel.
      params: of its `conv_general_dilated` in two dimensions, without strides, dilations and groups.
      result: its shape and dtype.
      values: tiles times channels of one product, at least one image's.

    Returns:
      The convolution's value, but for rounding.
    """
    numbers = params["dimension_numbers"]
    (batch, channel, *lhs_spatial), (out, into, *rhs_spatial) = numbers.lhs_spec, numbers.rhs_spec
    lhs = jnp.transpose(lhs, (batch, *lhs_spatial, channel))
    rhs = jnp.transpose(rhs, (*rhs_spatial, into, out))
    height, width = (result.shape[axis] for axis in numbers.out_spec[2:])
    rows = _sums(_KERNEL, rhs)
    kernel = _sums(_KERNEL, [rows[:, x] for x in range(3)])

    def convolve(images: jax.Array) -> jax.Array:
        tiles = _tiles(images, params["padding"])
        products = _products(tiles, kernel, 2, params["precision"]).reshape(*tiles.shape[:-1], -1)
        outputs = _sums(_OUTPUTS, _sums(_OUTPUTS, products, axis=4), axis=2)
        n, high, _, wide, _, channels = outputs.shape
        return outputs.reshape(n, 2 * high, 2 * wide, channels)[:, :height, :width]

    chunks = split_in_chunks(lhs, _images(height, width, lhs.shape[-1], values))
    outputs = jax.lax.map(convolve, chunks) if len(chunks) > 1 else convolve(chunks[0])[None]
    return reorder(outputs.reshape(-1, *outputs.shape[2:])[: len(lhs)], (0, 3, 1, 2), numbers.out_spec)


def kernel_gradient(
    lhs: jax.Array, rhs: jax.Array, *, params: dict[str, Any], result: Any, values: int = VALUES
) -> jax.Array:
    """The kernel gradient of a 3x3 convolution, summed over a few images at a time.

    Args:
      lhs: the layer's input, its images along the axis that `params` calls the feature.
      rhs: the gradient with respect to the layer's output.
      params: of the kernel gradient's `conv_general_dilated` in two dimensions, without strides, dilations and groups.
      result: its shape and dtype.
      values: tiles times channels of one product, at least one image's.

    Returns:
      The convolution's value, but for rounding.
    """
    numbers = params["dimension_numbers"]
    (batch, channel, *lhs_spatial), (out, into, *rhs_spatial) = numbers.lhs_spec, numbers.rhs_spec
    rhs = jnp.transpose(rhs, (into, *rhs_spatial, out))
    lhs = jnp.transpose(lhs, (channel, *lhs_spatial, batch))
    _, height, width, _ = rhs.shape
    images = _images(height, width, lhs.shape[-1], values)
    lhs, rhs = split_in_chunks(lhs, images), split_in_chunks(rhs, images)

    def products(chunk: Any) -> jax.Array:
        images, gradients = (jax.lax.dynamic_index_in_dim(part, chunk, keepdims=False) for part in (lhs, rhs))
        gradients = _pad(gradients, [(0, size % 2) for size in gradients.shape[1:3]])
        rows = _sums(_transpose(_OUTPUTS), [gradients[:, y::2] for y in range(2)])
        gradients = _sums(_transpose(_OUTPUTS), [rows[..., x::2, :] for x in range(2)])
        return _products(_tiles(images, params["padding"]), gradients, 1, params["precision"])

    # Starts from the first products, not from zeros: on a mapped axis zeros would have another type.
    total = jax.lax.fori_loop(1, len(lhs), lambda chunk, total: total + products(chunk), products(0))
    gradient = _sums(_transpose(_KERNEL), _sums(_transpose(_KERNEL), total, axis=1))
    return reorder(gradient, (2, 3, 0, 1), numbers.out_spec)


def _sums(matrix: Sequence[Sequence[float]], arrays: Any, *, axis: int = 0) -> jax.Array:
    """The sums of `arrays` weighted by each row of the matrix, stacked along `axis`."""

    def one(row: Sequence[float]) -> jax.Array:
        terms = [array if weight == 1 else weight * array for weight, array in zip(row, arrays, strict=True) if weight]
        return functools.reduce(jnp.add, terms)

    # Without the barrier XLA computes the sums of one axis again for every sum of the other.
    return jax.lax.optimization_barrier(jnp.stack([one(row) for row in matrix], axis=axis))


def _images(height: int, width: int, channels: int, values: int) -> int:
    """The number of images of this size in one product."""
    return max(1, values // (math.ceil(height / 2) * math.ceil(width / 2) * channels))


def _tiles(images: jax.Array, padding: Sequence[tuple[int, int]]) -> jax.Array:
    """Every tile, transformed: `[4, 4, n, tiles high, tiles wide, channels]`, the places along x first."""
    sizes = [size + sum(amounts) for size, amounts in zip(images.shape[1:3], padding, strict=True)]
    padded = _pad(images, [(low, high + size % 2) for (low, high), size in zip(padding, sizes, strict=True)])
    last_y, last_x = (size - 3 for size in padded.shape[1:3])
    rows = _sums(_IMAGES, [padded[:, y : y + last_y : 2] for y in range(4)])
    return _sums(_IMAGES, [rows[..., x : x + last_x : 2, :] for x in range(4)])


def _pad(images: jax.Array, amounts: Sequence[tuple[int, int]]) -> jax.Array:
    spatial = [(low, high, 0) for low, high in amounts]
    padded = jax.lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *spatial, (0, 0, 0)])
    # Without the barrier XLA fuses the padding into every tile, which is slow.
    return jax.lax.optimization_barrier(padded)


def _products(a: jax.Array, b: jax.Array, contracted: int, precision: Any) -> jax.Array:
    """The matrix products of each place: `contracted` is 2 for the channels of `a`, 1 for its tiles."""
    a, b = (array.reshape(16, -1, array.shape[-1]) for array in (a, b))
    products = jax.lax.dot_general(a, b, (((contracted,), (1,)), ((0,), (0,))), precision=precision)
    return products.reshape(4, 4, *products.shape[1:])


def _transpose(matrix: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    return list(zip(*matrix, strict=True))
