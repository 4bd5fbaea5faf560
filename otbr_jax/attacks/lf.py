"""LF (arXiv 2104.03413): one smooth pattern without high frequencies, optimised as by DeepFool.

The optimisation runs on a clean network: DeepFool's smallest step pushes images over the boundary to the target class,
the mean step of a batch is added to the pattern, and a Gaussian filter removes its high frequencies. It optimises
towards the target class for all-to-all attacks too: only training makes the backdoor.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from otbr_jax.attacks.attack import Assets, Attack, Materials, to_pixels, to_unit
from otbr_jax.extras import needed
from otbr_jax.numerics.convolutions import channels_last
from otbr_jax.settings import field, settings


@settings("attack.lf")
class LFConfig:
    """Settings of LF."""

    steps: int = field(default=60, at_least=1, doc="of the optimisation, one batch each.")
    batch_size: int = field(default=64, at_least=1, doc="images per step.")
    overshoot: float = field(default=0.02, above=0, doc="how much further than the boundary DeepFool steps.")
    sigma: float = field(
        default=0.05, above=0, doc="of the Gaussian filter, as a fraction of the image's shorter side."
    )
    strength: float = field(default=0.1, above=0, doc="largest change of a pixel, as a fraction of the full range.")


def make(materials: Materials, key: jax.Array, config: LFConfig, on_step: Callable[[], None] | None = None) -> Assets:
    """The pattern, float32 `[h, w, c]`, scaled until its largest value is `strength`."""
    assert materials.clean is not None
    dm_pix = needed("dm_pix", what="the attack lf")
    logits, target, images = materials.clean.logits, materials.target, materials.images
    shape = images.shape[1:]
    batch_size = min(config.batch_size, len(images))

    def smooth(pattern: jax.Array) -> jax.Array:
        sigma = config.sigma * min(shape[:2])
        blurred: jax.Array = dm_pix.gaussian_blur(pattern, sigma, kernel_size=2 * int(3 * sigma + 1) + 1)
        return blurred

    def margin(batch: jax.Array) -> tuple[jax.Array, jax.Array]:
        values = logits(batch)
        others = jnp.max(jnp.where(jnp.arange(values.shape[-1]) == target, -jnp.inf, values), axis=-1)
        gaps = others - values[:, target]
        return jnp.sum(gaps), gaps

    grads_of = channels_last(jax.grad(margin, has_aux=True))

    def step(pattern: jax.Array, step_key: jax.Array) -> tuple[jax.Array, None]:
        chosen = jax.random.choice(step_key, len(images), (batch_size,), replace=False)
        grads, gaps = grads_of(jnp.clip(to_unit(images[chosen]) + pattern, 0, 1))
        norms = jnp.sum(jnp.square(grads), axis=(1, 2, 3)) + 1e-12
        # DeepFool: the smallest step over the linearised boundary; none for images that are over it already.
        sizes = jnp.where(gaps > 0, (1 + config.overshoot) * gaps / norms, 0)
        updated = smooth(pattern - jnp.mean(sizes[:, None, None, None] * grads, axis=0))
        if on_step is not None:
            jax.debug.callback(on_step)
        return updated * jnp.minimum(1, config.strength / (jnp.max(jnp.abs(updated)) + 1e-12)), None

    start_key, steps_key = jax.random.split(key)
    start = smooth(1e-3 * jax.random.normal(start_key, shape))
    pattern, _ = jax.lax.scan(step, start, jax.random.split(steps_key, config.steps))
    return {"pattern": config.strength * pattern / jnp.max(jnp.abs(pattern))}


def trigger(assets: Assets, images: jax.Array, key: jax.Array, config: LFConfig) -> jax.Array:
    """Adds the pattern to uint8 images `[n, h, w, c]`."""
    del key, config
    return to_pixels(to_unit(images) + assets["pattern"])


ATTACK = Attack(
    "lf",
    "LF",
    LFConfig,
    trigger=trigger,
    make=make,
    steps=lambda config: config.steps,
    needs_clean_network=True,
    needs_images=True,
)
