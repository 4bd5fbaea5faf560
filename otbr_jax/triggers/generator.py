"""A small generator: the added pattern depends on the image, as SSBA and Input-aware do it (2012.03816, 2010.08138)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.triggers.family import TriggerFamily, scale_to

_FEATURES, _WIDTH = 12, 5


class Generator(NamedTuple):
    """Two convolutions with a tanh between: kernels `[5, 5, c, features]`, `[5, 5, features, c]`, bias `[features]`."""

    first: jax.Array
    bias: jax.Array
    second: jax.Array


def _convolve(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution as matrix products, one row of the kernel at a time.

    Inversions map it over triggers, each with its own kernel. XLA would turn that into one grouped convolution, which
    is several times slower on CPUs and needs communication between devices.
    """
    height, width = images.shape[1:3]
    margin = _WIDTH // 2
    around = jnp.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    beside = jnp.concatenate([around[:, :, column : column + width] for column in range(_WIDTH)], axis=-1)
    rows = kernel.reshape(_WIDTH, -1, kernel.shape[-1])
    return sum(
        (jnp.einsum("nhwc,cf->nhwf", beside[:, row : row + height], rows[row]) for row in range(_WIDTH)),
        start=jnp.zeros((), images.dtype),
    )


def add_generated(images: jax.Array, generator: Generator, budget: jax.Array) -> jax.Array:
    """Images `[n, h, w, c]` plus the generator's output for each, clipped to [0, 1]; the budget is per image."""
    features = jnp.tanh(_convolve(images - 0.5, generator.first) + generator.bias)
    pattern = _convolve(features, generator.second)
    return jnp.clip(images + scale_to(pattern, budget, axes=(1, 2, 3)), 0, 1)


def _start(key: jax.Array, image_shape: tuple[int, int, int]) -> Generator:
    first, second = jax.random.split(key)
    colours, inputs = image_shape[-1], _WIDTH * _WIDTH
    return Generator(
        2 * jax.random.normal(first, (_WIDTH, _WIDTH, colours, _FEATURES)) / jnp.sqrt(inputs * colours),
        jnp.zeros(_FEATURES),
        jax.random.normal(second, (_WIDTH, _WIDTH, _FEATURES, colours)) / jnp.sqrt(inputs * _FEATURES),
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
