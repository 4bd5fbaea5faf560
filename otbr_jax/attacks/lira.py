"""LIRA (ICCV 2021): a generator adds an invisible change, and is trained together with the victim.

The generator is trained on the victim's own loss on triggered images, so that both agree on a trigger. The paper
alternates their steps, shows the victim every image both ways, and tunes the victim to the finished generator; here
one step trains both on a share of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from otbr_jax.attacks.attack import Assets, Attack, InTraining, Materials, replace_some, roles, to_pixels, to_unit
from otbr_jax.attacks.networks import init_unet, unet
from otbr_jax.settings import field, settings


@settings("attack.lira")
class LIRAConfig:
    """Settings of LIRA."""

    eps: float = field(
        default=0.05, above=0, at_most=1, doc="largest change of a pixel, as a fraction of the full range."
    )
    channels: int = field(default=16, at_least=1, doc="width of the generator.")
    learning_rate: float = field(default=2e-3, above=0, doc="of Adam on the generator; falls to zero along a cosine.")


def make(materials: Materials, key: jax.Array, config: LIRAConfig, on_step: Callable[[], None] | None = None) -> Assets:
    """The generator before it is trained."""
    del on_step
    colours = materials.images.shape[-1]
    return {"generator": init_unet(key, into=colours, out=colours, channels=config.channels)}


def put(params: Any, images: jax.Array, eps: float) -> jax.Array:
    """Images in [0, 1], each pixel changed by at most `eps`."""
    return jnp.clip(images + eps * jnp.tanh(unet(params, 2 * images - 1)), 0, 1)


def trigger(assets: Assets, images: jax.Array, key: jax.Array, config: LIRAConfig) -> jax.Array:
    """Adds to uint8 images `[n, h, w, c]` what the generator makes of each."""
    del key
    return to_pixels(put(assets["generator"], to_unit(images), config.eps))


def in_training(ratio: float, config: LIRAConfig) -> InTraining:
    """Triggers a share `ratio` of every batch; the victim's loss on it trains the generator too."""

    def poison(
        assets: Assets, images: jax.Array, labels: jax.Array, goals: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        role, count = roles(len(images), ratio, 0, key)
        changed = put(assets["generator"], images[:count], config.eps)
        # Rounded as pixels are, which gradients do not see.
        changed = changed + jax.lax.stop_gradient(jnp.round(changed * 255) / 255 - changed)
        return *replace_some(images, labels, changed, goals, role), jnp.zeros(())

    def optimizer(steps: int) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(config.learning_rate, steps))

    return InTraining(poison, trained=("generator",), optimizer=optimizer)


ATTACK = Attack("lira", "LIRA", LIRAConfig, trigger=trigger, make=make, in_training=in_training)
