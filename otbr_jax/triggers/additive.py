"""Something is added to every image: anything at all, or a smooth picture of few colours."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from otbr_jax.triggers.family import TriggerFamily, within

_CELLS = 6  # of a smooth addition, along each side


def add(images: jax.Array, added: jax.Array, budget: jax.Array) -> jax.Array:
    """Images `[n, h, w, c]` plus what is added `[h, w, c]`, cut off at 0 and 1."""
    return jnp.clip(images + within(added, budget), 0, 1)


def add_smooth(images: jax.Array, cells: jax.Array, budget: jax.Array) -> jax.Array:
    """Images `[n, h, w, c]` plus `[cells, cells, c]`, enlarged by cubic interpolation."""
    return add(images, jax.image.resize(cells, images.shape[1:], "cubic"), budget)


_UNIT = "root mean square of what is added, in units of images in [0, 1]"

ADDITIVE = TriggerFamily(
    name="additive",
    unit=_UNIT,
    init=lambda key, image_shape: 0.02 * jax.random.normal(key, image_shape),
    apply=add,
    learning_rate=0.003,
    start=0.06,
    bounds=(0.002, 0.3),
    lesson=0.02,
)

LOW_FREQUENCY = TriggerFamily(
    name="low_frequency",
    unit=_UNIT,
    init=lambda key, image_shape: 0.05 * jax.random.normal(key, (_CELLS, _CELLS, image_shape[-1])),
    apply=add_smooth,
    learning_rate=0.01,
    start=0.12,
    bounds=(0.004, 0.4),
    lesson=0.04,
)
"""After LF (arXiv 2104.03413) and Blended with smooth patterns."""
