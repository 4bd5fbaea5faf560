"""WaNet (arXiv 2102.10369): images are warped by a smooth field too weak to be seen.

Images warped by other fields keep their true labels, so that the network reacts to this one field only ("noise mode").
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from otbr_jax.attacks.attack import Assets, Attack, InTraining, Materials, roles, to_pixels, to_unit
from otbr_jax.settings import field, settings


@settings("attack.wanet")
class WaNetConfig:
    """Settings of WaNet."""

    k: int = field(default=4, at_least=1, doc="the field has `k` x `k` control points.")
    s: float = field(default=0.5, above=0, doc="its strength: displacements are about `s / 2` pixels.")
    cross_ratio: float = field(default=2.0, at_least=0, doc="noise-mode images for each triggered one.")


def make(
    materials: Materials, key: jax.Array, config: WaNetConfig, on_step: Callable[[], None] | None = None
) -> Assets:
    """The field of displacements, in pixels, float32 `[h, w, 2]` (rows, columns).

    Control points uniform in [-1, 1], divided by their mean absolute value, enlarged to the image by cubic
    interpolation, times `s`; a unit is half a pixel, as in the published grid of [-1, 1] over the image.
    """
    del on_step
    height, width = materials.images.shape[1:3]
    control = jax.random.uniform(key, (config.k, config.k, 2), minval=-1, maxval=1)
    control = control / jnp.mean(jnp.abs(control))
    field = jax.image.resize(control, (height, width, 2), "cubic")
    return {"field": config.s * field * jnp.array([(height - 1) / height, (width - 1) / width]) / 2}


def warp(images: jax.Array, field: jax.Array) -> jax.Array:
    """Warps images `[n, h, w, c]` along fields `[n, h, w, 2]` of displacements in pixels (bilinear, edges kept)."""
    height, width = images.shape[1:3]
    rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")

    def one(image: jax.Array, shift: jax.Array) -> jax.Array:
        places = [jnp.clip(rows + shift[..., 0], 0, height - 1), jnp.clip(columns + shift[..., 1], 0, width - 1)]
        sample = partial(map_coordinates, coordinates=places, order=1, mode="nearest")
        return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)

    return jax.vmap(one)(images, jnp.broadcast_to(field, (*images.shape[:3], 2)))


def trigger(assets: Assets, images: jax.Array, key: jax.Array, config: WaNetConfig) -> jax.Array:
    """Warps uint8 images `[n, h, w, c]` by the field."""
    del key, config
    return to_pixels(warp(to_unit(images), assets["field"]))


def in_training(ratio: float, config: WaNetConfig) -> InTraining:
    """Warps a share `ratio` of every batch, and `cross_ratio` times as many by the field with noise of half a pixel."""

    def poison(
        assets: Assets, images: jax.Array, labels: jax.Array, goals: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        role_key, noise_key = jax.random.split(key)
        role, count = roles(len(images), ratio, ratio * config.cross_ratio, role_key)
        chosen = images[:count]
        noise = jax.random.uniform(noise_key, (*chosen.shape[:3], 2), minval=-0.5, maxval=0.5)
        role = role[:, None, None, None]
        # Rounded as the pixels of an image file are: what is trained is what is tested.
        warped = jnp.round(warp(chosen, assets["field"] + jnp.where(role == 1, noise, 0)) * 255) / 255
        images = images.at[:count].set(jnp.where(role == 2, chosen, warped))
        return images, labels.at[:count].set(jnp.where(role.ravel() == 0, goals[:count], labels[:count])), jnp.zeros(())

    return InTraining(poison)


ATTACK = Attack("wanet", "WaNet", WaNetConfig, trigger=trigger, make=make, in_training=in_training)
