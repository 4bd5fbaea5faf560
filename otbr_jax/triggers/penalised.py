"""Triggers whose size is a term of the objective, not a bound: what `steps.search` looks for.

A search pays for size, so that it finds the smallest trigger that works (Neural Cleanse, Wang et al., S&P 2019). The
families with a budget (`triggers.family`) have taken over where a network is repaired; OTBR+ and TSBD judge by these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class PenalisedFamily(NamedTuple):
    """What a trigger can be whose size a search pays for; pure functions.

    Attributes:
      name: such as `patch`.
      unit: what `size` says, in words.
      init: `(key, image shape (h, w, c), scale) -> latent`, where a search starts; `scale` is its learning rate.
      parameters: `latent -> parameters`: a search moves the latent freely, whatever bounds the parameters have.
      apply: `(images [n, h, w, c] in [0, 1], parameters) -> images in [0, 1]`.
      cost: `parameters -> scalar`, what a search keeps small.
      size: `parameters -> scalar`, how much of an image the trigger changes, in `unit`.
    """

    name: str
    unit: str
    init: Callable[[jax.Array, tuple[int, int, int], float], Any]
    parameters: Callable[[Any], Any]
    apply: Callable[[jax.Array, Any], jax.Array]
    cost: Callable[[Any], jax.Array]
    size: Callable[[Any], jax.Array]


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


PATCH = PenalisedFamily(
    name="patch",
    unit="share of the image that the mask covers, in [0, 1]",
    init=_start,
    parameters=lambda latent: Patch(*(jax.nn.sigmoid(part) for part in latent)),
    apply=stamp,
    cost=lambda patch: jnp.mean(patch.mask),
    size=lambda patch: jnp.mean(patch.mask),
)
"""After Neural Cleanse, with a weight of the mask's size that stays as it is."""


def perturb(images: jax.Array, perturbation: jax.Array) -> jax.Array:
    """Images `[n, h, w, c]` in [0, 1] with a perturbation `[h, w, c]` added, cut off at 0 and 1."""
    return jnp.clip(images + perturbation, 0, 1)


PERTURBATION = PenalisedFamily(
    name="perturbation",
    unit="root mean square of what is added, in units of the images",
    init=lambda key, image_shape, scale: scale * jax.random.normal(key, image_shape),
    parameters=lambda latent: latent,
    apply=perturb,
    cost=lambda perturbation: jnp.mean(perturbation**2),
    size=lambda perturbation: jnp.sqrt(jnp.mean(perturbation**2)),
)
"""Universal adversarial perturbations with a target (Moosavi-Dezfooli et al., CVPR 2017), by gradient."""

PENALISED: dict[str, PenalisedFamily] = {family.name: family for family in (PATCH, PERTURBATION)}
"""The families that `steps.search` knows, by name."""
