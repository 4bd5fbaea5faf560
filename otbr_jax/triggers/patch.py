"""A patch: a small part of the image is replaced by a pattern."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.triggers.family import TriggerFamily

_SHARPNESS = 3.0  # patterns are logistic functions of this times the latent: near black or white in few steps


class Patch(NamedTuple):
    """A mask `[h, w, 1]`, how much of a pixel is replaced, and a pattern `[h, w, c]`, by what.

    Both in [0, 1]. As the latent of `PATCH`: the mask before its projection, the pattern before the logistic.
    """

    mask: jax.Array
    pattern: jax.Array


def replace(images: jax.Array, patch: Patch) -> jax.Array:
    """Images `[n, h, w, c]` in [0, 1] with a patch applied, both of whose parts are in [0, 1]."""
    return (1 - patch.mask) * images + patch.mask * patch.pattern


def project_mask(mask: jax.Array, share: jax.Array) -> jax.Array:
    """The nearest mask `[h, w, 1]` in [0, 1] whose mean is at most `share`: all entries lowered by the same amount.

    This projection leaves a few pixels wholly covered, where scaling down would leave a faint veil over all.
    """

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        too_much = jnp.mean(jnp.clip(mask - middle, 0, 1)) > share
        return jnp.where(too_much, middle, low), jnp.where(too_much, high, middle)

    _, lowered = jax.lax.fori_loop(0, 25, halve, (jnp.min(mask) - 1, jnp.max(mask)))
    return jnp.clip(mask - jnp.maximum(lowered, 0.0), 0, 1)


def project(patch: Patch, budget: jax.Array) -> Patch:
    """The mask and the pattern in [0, 1] of a latent at a budget."""
    return Patch(project_mask(patch.mask, budget), jax.nn.sigmoid(_SHARPNESS * patch.pattern))


def stamp(images: jax.Array, patch: Patch, budget: jax.Array) -> jax.Array:
    """Images `[n, h, w, c]` with the patch of a latent applied; gradients pass straight through the projection."""
    mask = patch.mask + jax.lax.stop_gradient(project_mask(patch.mask, budget) - patch.mask)
    return replace(images, Patch(mask, jax.nn.sigmoid(_SHARPNESS * patch.pattern)))


def _start(key: jax.Array, image_shape: tuple[int, int, int]) -> Patch:
    """Half of them an empty mask, half a rectangle of one colour, with sides of two to six 32nds of the image."""
    height, width, channels = image_shape
    draw, noise_key = jax.random.split(key)
    draws = jax.random.uniform(draw, (5 + channels,))
    inside = jnp.ones(())
    for size, length, place in ((height, draws[0], draws[1]), (width, draws[2], draws[3])):
        side = jnp.maximum(2.0, jnp.round((2 + 4 * length) * size / 32))
        start = jnp.round(place * (size - side))
        pixels = jnp.arange(size)
        inside = inside[..., None] * ((pixels >= start) & (pixels < start + side))
    colour = jnp.where(draws[5:] < 0.5, -1.0, 1.0)
    pattern = jnp.where(inside[..., None] > 0, colour, jax.random.normal(noise_key, image_shape))
    return Patch(jnp.where(draws[4] < 0.5, 0.0, 2.0) * inside[..., None], pattern)


_UNIT = "share of the image that the mask covers, in [0, 1]"

PATCH = TriggerFamily(
    name="patch",
    unit=_UNIT,
    init=_start,
    apply=stamp,
    learning_rate=0.1,
    start=0.12,
    bounds=(0.002, 0.4),
    stop_success=0.01,
    extrapolation=1.25,
)


def penalised_patch(learning_rate: float) -> TriggerFamily:
    """A patch whose mask size is penalised, after Neural Cleanse (Wang et al., S&P 2019). No budget.

    Mask and pattern are logistic functions of the latent. The mask starts at a half everywhere, so that it finds the
    trigger at any position.
    """
    return TriggerFamily(
        name="patch",
        unit=_UNIT,
        init=lambda key, image_shape: Patch(jnp.zeros((*image_shape[:2], 1)), jax.random.normal(key, image_shape)),
        apply=lambda images, patch, budget: replace(images, patch),
        learning_rate=learning_rate,
        parameters=lambda latent: Patch(*(jax.nn.sigmoid(part) for part in latent)),
        size=lambda patch: jnp.mean(patch.mask),
    )
