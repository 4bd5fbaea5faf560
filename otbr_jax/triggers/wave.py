"""A wave: one sinusoid over the whole image, as SIG adds it (arXiv 1902.11237)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.triggers.additive import add
from otbr_jax.triggers.family import TriggerFamily

_HIGHEST = 12.0  # periods over an image


class Wave(NamedTuple):
    """Periods over the image along rows and columns `[2]`, phase in radians, and strength in each colour `[c]`."""

    periods: jax.Array
    phase: jax.Array
    colour: jax.Array


def add_wave(images: jax.Array, wave: Wave, budget: jax.Array) -> jax.Array:
    """Images `[n, h, w, c]` plus the wave, at a root mean square of `budget`, clipped to [0, 1]."""
    height, width = images.shape[1:3]
    rows, columns = jnp.arange(height)[:, None] / height, jnp.arange(width)[None, :] / width
    angle = 2 * jnp.pi * (wave.periods[0] * rows + wave.periods[1] * columns) + wave.phase
    shape = jnp.sin(angle)[..., None] * wave.colour
    return add(images, shape, budget)


def _start(key: jax.Array, image_shape: tuple[int, int, int]) -> Wave:
    """Half of them along one side alone; whole periods, any phase, grey."""
    along, across, phase = jax.random.split(key, 3)
    main = jnp.round(jax.random.uniform(along, (2,), minval=1, maxval=_HIGHEST))
    keep = jax.random.randint(across, (), 0, 4)  # rows alone, columns alone, both, both
    periods = main * jnp.array([[1.0, 0], [0, 1], [0.5, 0.5], [0.5, -0.5]])[keep]
    return Wave(periods, jax.random.uniform(phase, (), maxval=2 * jnp.pi), jnp.ones(image_shape[-1]))


WAVE = TriggerFamily(
    name="wave",
    unit="root mean square of what is added, in units of images in [0, 1]",
    init=_start,
    apply=add_wave,
    learning_rate=0.02,
    start=0.3,
    bounds=(0.01, 0.6),
)
