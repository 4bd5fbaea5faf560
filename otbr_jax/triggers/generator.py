"""A small generator: what is added depends on the image, as SSBA and Input-aware do it (2012.03816, 2010.08138)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.triggers.family import TriggerFamily, scale_to

_FEATURES, _REACH = 12, 5


class Generator(NamedTuple):
    """Two convolutions with a tanh between: kernels `[5, 5, c, features]`, `[5, 5, features, c]`, bias `[features]`."""

    first: jax.Array
    bias: jax.Array
    second: jax.Array


def _convolve(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution, row by row of the kernel as products of matrices.

    Searches map it over triggers, each with a kernel of its own. XLA makes one convolution with groups of that, which
    is several times slower on CPUs, and which devices cannot share without sending each other images.
    """
    height, width = images.shape[1:3]
    reach = _REACH // 2
    around = jnp.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    beside = jnp.concatenate([around[:, :, column : column + width] for column in range(_REACH)], axis=-1)
    rows = kernel.reshape(_REACH, -1, kernel.shape[-1])
    return sum(
        (jnp.einsum("nhwc,cf->nhwf", beside[:, row : row + height], rows[row]) for row in range(_REACH)),
        start=jnp.zeros((), images.dtype),
    )


def add_generated(images: jax.Array, generator: Generator, budget: jax.Array) -> jax.Array:
    """Images `[n, h, w, c]` plus what the generator makes of each, cut off at 0 and 1; the budget is each image's."""
    features = jnp.tanh(_convolve(images - 0.5, generator.first) + generator.bias)
    made = _convolve(features, generator.second)
    return jnp.clip(images + scale_to(made, budget, axes=(1, 2, 3)), 0, 1)


def _start(key: jax.Array, image_shape: tuple[int, int, int]) -> Generator:
    first, second = jax.random.split(key)
    colours, inputs = image_shape[-1], _REACH * _REACH
    return Generator(
        2 * jax.random.normal(first, (_REACH, _REACH, colours, _FEATURES)) / jnp.sqrt(inputs * colours),
        jnp.zeros(_FEATURES),
        jax.random.normal(second, (_REACH, _REACH, _FEATURES, colours)) / jnp.sqrt(inputs * _FEATURES),
    )


GENERATOR = TriggerFamily(
    name="generator",
    unit="root mean square of what is added to each image, in units of images in [0, 1]",
    init=_start,
    apply=add_generated,
    learning_rate=0.02,
    start=0.12,
    bounds=(0.002, 0.4),
)
