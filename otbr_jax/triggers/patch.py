"""A patch: a part of the image is replaced by a pattern."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.triggers.family import TriggerFamily


class Patch(NamedTuple):
    """A mask `[h, w, 1]`, how much of a pixel is replaced, and a pattern `[h, w, c]`, by what; both in [0, 1]."""

    mask: jax.Array
    pattern: jax.Array


def stamp(images: jax.Array, patch: Patch) -> jax.Array:
    """Images `[n, h, w, c]` in [0, 1] with a patch put on."""
    return (1 - patch.mask) * images + patch.mask * patch.pattern


def _start(key: jax.Array, image_shape: tuple[int, int, int], scale: float) -> Patch:
    """A mask that is half there everywhere finds the trigger wherever it lies."""
    del scale
    height, width, _ = image_shape
    return Patch(jnp.zeros((height, width, 1)), jax.random.normal(key, image_shape))


PATCH = TriggerFamily(
    name="patch",
    unit="share of the image that the mask covers, in [0, 1]",
    init=_start,
    parameters=lambda latent: Patch(*(jax.nn.sigmoid(part) for part in latent)),
    apply=stamp,
    cost=lambda patch: jnp.mean(patch.mask),
    size=lambda patch: jnp.mean(patch.mask),
)
"""After Neural Cleanse (Wang et al., S&P 2019), with a weight of the mask's size that stays as it is."""
