"""Blended (arXiv 1712.05526): a fixed full-size pattern is blended into every triggered image."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from otbr_jax.attacks.attack import Assets, Attack, Materials, to_pixels, to_unit
from otbr_jax.settings import field, settings


@settings("attack.blended")
class BlendedConfig:
    """Settings of Blended."""

    alpha: float = field(default=0.2, above=0, below=1, doc="the pattern's share of the blend.")
    cells: int = field(default=8, at_least=2, doc="the pattern is `cells` x `cells` random colours, smoothly enlarged.")


def make(
    materials: Materials, key: jax.Array, config: BlendedConfig, on_step: Callable[[], None] | None = None
) -> Assets:
    """The pattern, uint8 `[h, w, c]`: smoothly varying random colours.

    The published attack blends in a cartoon or random noise; noise of single pixels does not survive crops and flips.
    """
    del on_step
    shape = materials.images.shape[1:]
    colours = jax.random.uniform(key, (config.cells, config.cells, shape[2]))
    pattern = jax.image.resize(colours, shape, "cubic")
    low, high = jnp.min(pattern), jnp.max(pattern)
    return {"pattern": to_pixels((pattern - low) / (high - low))}


def trigger(assets: Assets, images: jax.Array, key: jax.Array, config: BlendedConfig) -> jax.Array:
    """(1 - alpha) image + alpha pattern, on uint8 images `[n, h, w, c]`."""
    del key
    pattern = assets["pattern"].astype(jnp.float32) / 255
    return to_pixels((1 - config.alpha) * to_unit(images) + config.alpha * pattern)


ATTACK = Attack("blended", "Blended", BlendedConfig, trigger=trigger, make=make)
