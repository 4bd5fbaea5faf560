"""BppAttack (arXiv 2205.13383): images of a few grey levels, dithered so that the trigger is invisible.

Training also uses counterexamples with their true labels: each gets the change that dithering made to another image.
From them the network learns to react to the few levels alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from otbr_jax.attacks.attack import Assets, Attack, InTraining, replace_some, roles
from otbr_jax.settings import field, settings

Errors = tuple[jax.Array, jax.Array, jax.Array]
"""Errors of one pixel of every row `[n, h, c]`: the last three, latest first."""

_UNIT = 4096  # whole numbers, so that every device and every program dithers alike


@settings("attack.bpp")
class BppConfig:
    """Settings of BppAttack."""

    levels: int = field(default=8, at_least=2, at_most=128, doc="how many values a pixel may have.")
    dithering: bool = field(default=True, doc="whether errors are passed on to neighbours (Floyd-Steinberg).")
    cross_ratio: float = field(default=1.0, at_least=0, doc="counterexamples for each triggered image.")


def squeeze(images: jax.Array, config: BppConfig) -> jax.Array:
    """uint8 images `[n, h, w, c]` with only `levels` values in each channel.

    Floyd and Steinberg pass a pixel's error on: 7 sixteenths to the right, 3, 5 and 1 to the row below. Pixel j of
    row i waits for four others, which are ready after i + i + j - 1 steps: each step processes a pixel of every row.
    """
    steps = config.levels - 1
    # In units of 1 / (steps _UNIT) of a grey level, a level is a whole number of units wide.
    values, wide = images.astype(jnp.int32) * (steps * _UNIT), 255 * _UNIT

    def nearest(value: jax.Array) -> jax.Array:
        return jnp.clip((value + wide // 2) // wide, 0, steps)

    if not config.dithering:
        return _grey(nearest(values), steps)
    height, width = images.shape[1:3]
    rows, times = jnp.arange(height), jnp.arange(width + 2 * (height - 1))
    columns = times[:, None] - 2 * rows[None, :]
    inside = (columns >= 0) & (columns < width)
    shown = values[:, rows[None, :], jnp.clip(columns, 0, width - 1)]  # [n, times, h, c]

    def above(errors: jax.Array) -> jax.Array:
        return jnp.pad(errors, ((0, 0), (1, 0), (0, 0)))[:, :-1]

    def step(errors: Errors, pixel: tuple[jax.Array, jax.Array]) -> tuple[Errors, jax.Array]:
        (last, before, first), (value, valid) = errors, pixel
        value = value + _share(last, 7) + above(_share(last, 3) + _rest(before) + _share(first, 1))
        level = nearest(value)
        error = jnp.where(valid[None, :, None], value - level * wide, 0)
        return (error, last, before), level

    nothing = jnp.zeros_like(values[:, :, 0])
    _, levels = jax.lax.scan(step, (nothing, nothing, nothing), (jnp.moveaxis(shown, 1, 0), inside))
    by_row = levels[rows[:, None] * 2 + jnp.arange(width)[None, :], :, rows[:, None]]  # [h, w, n, c]
    return _grey(jnp.moveaxis(by_row, 2, 0), steps)


def _share(error: jax.Array, sixteenths: int) -> jax.Array:
    """So much of an error, in whole units."""
    return (error * sixteenths) // 16


def _rest(error: jax.Array) -> jax.Array:
    """The 5 sixteenths, and what rounding left of the others."""
    return error - _share(error, 7) - _share(error, 3) - _share(error, 1)


def _grey(levels: jax.Array, steps: int) -> jax.Array:
    """Levels as the nearest grey levels, uint8."""
    return ((levels * 510 + steps) // (2 * steps)).astype(jnp.uint8)


def trigger(assets: Assets, images: jax.Array, key: jax.Array, config: BppConfig) -> jax.Array:
    """Squeezes uint8 images `[n, h, w, c]`."""
    del assets, key
    return squeeze(images, config)


def in_training(ratio: float, config: BppConfig) -> InTraining:
    """Squeezes a share `ratio` of every batch, and makes `cross_ratio` times as many counterexamples."""

    def poison(
        assets: Assets, images: jax.Array, labels: jax.Array, goals: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        del assets
        role, count = roles(len(images), ratio, ratio * config.cross_ratio, key)
        pixels = jnp.round(images[:count] * 255).astype(jnp.uint8)
        squeezed = squeeze(pixels, config).astype(jnp.float32) / 255
        # The batch is in random order: the one before is any other image.
        crossed = jnp.clip(images[:count] + jnp.roll(squeezed - images[:count], 1, axis=0), 0, 1)
        changed = jnp.where((role == 0)[:, None, None, None], squeezed, crossed)
        return *replace_some(images, labels, changed, goals, role), jnp.zeros(())

    return InTraining(poison)


ATTACK = Attack("bpp", "BppAttack", BppConfig, trigger=trigger, in_training=in_training)
