"""Additive triggers: one pattern is added to every image, any pattern or a smooth one."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from otbr_jax.triggers.family import TriggerFamily, scale_to

_CELLS = 6  # of a smooth pattern, along each side


def add(images: jax.Array, added: jax.Array, budget: jax.Array) -> jax.Array:
    """Images `[n, h, w, c]` plus a pattern `[h, w, c]`, clipped to [0, 1]."""
    return jnp.clip(images + scale_to(added, budget), 0, 1)


def perturb(images: jax.Array, perturbation: jax.Array) -> jax.Array:
    """Images `[n, h, w, c]` in [0, 1] with a perturbation `[h, w, c]` added as it is, clipped to [0, 1]."""
    return jnp.clip(images + perturbation, 0, 1)


def add_smooth(images: jax.Array, cells: jax.Array, budget: jax.Array) -> jax.Array:
    """Images `[n, h, w, c]` plus `[cells, cells, c]`, enlarged by cubic interpolation."""
    return add(images, jax.image.resize(cells, images.shape[1:], "cubic"), budget)


_UNIT = "root mean square of what is added, in units of images in [0, 1]"

ADDITIVE = TriggerFamily(
    name="additive",
    unit=_UNIT,
    init=jax.random.normal,
    apply=add,
    learning_rate=0.15,
    start=0.12,
    bounds=(0.002, 0.4),
)

LOW_FREQUENCY = TriggerFamily(
    name="low_frequency",
    unit=_UNIT,
    init=lambda key, image_shape: jax.random.normal(key, (_CELLS, _CELLS, image_shape[-1])),
    apply=add_smooth,
    learning_rate=0.15,
    start=0.2,
    bounds=(0.004, 0.5),
)
"""After LF (arXiv 2104.03413) and Blended with smooth patterns."""


def perturbation(learning_rate: float) -> TriggerFamily:
    """A universal perturbation with a target (Moosavi-Dezfooli et al., CVPR 2017), by gradient. No budget.

    It starts from noise of the size of one step of Adam.
    """
    return TriggerFamily(
        name="perturbation",
        unit="root mean square of what is added, in units of the images",
        init=lambda key, image_shape: learning_rate * jax.random.normal(key, image_shape),
        apply=lambda images, added, budget: perturb(images, added),
        learning_rate=learning_rate,
        size=lambda added: jnp.sqrt(jnp.mean(added**2)),
        cost=lambda added: jnp.mean(added**2),
    )
