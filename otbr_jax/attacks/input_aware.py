"""Input-aware (arXiv 2010.08138): a generator makes a pattern, a mask network its place, for each image its own.

The mask network is trained first and fixed. The generator learns together with the victim: triggered images go to the
target, images under the trigger of *another* image keep their labels (non-reuse), and different images must get
different patterns (diversity).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from otbr_jax.attacks.attack import Assets, Attack, InTraining, Materials, roles, to_pixels, to_unit
from otbr_jax.attacks.networks import fit, init_unet, unet
from otbr_jax.settings import field, settings

_DIVERSE = 16  # images whose patterns are compared in each step, at least


@settings("attack.input_aware")
class InputAwareConfig:
    """Settings of Input-aware."""

    density: float = field(default=0.032, above=0, doc="share of the pixels that a mask may cover without penalty.")
    cross_ratio: float = field(default=1.0, above=0, doc="images under another image's trigger for each triggered one.")
    diversity: float = field(default=1.0, above=0, doc="weight of the diversity loss.")
    sparsity: float = field(default=100.0, above=0, doc="weight of the mask's excess over `density`.")
    mask_steps: int = field(default=300, at_least=1, doc="training steps of the mask network.")
    mask_batch_size: int = field(default=64, at_least=1, doc="images in each of them.")
    learning_rate: float = field(default=0.005, above=0, doc="of Adam, for both networks.")
    channels: int = field(default=12, at_least=1, doc="width of both networks.")


def mask(params: Any, images: jax.Array) -> jax.Array:
    """The trigger's mask, nearly 0 or 1, `[n, h, w, 1]`, for images in [0, 1]."""
    return jax.nn.sigmoid(20 * jnp.tanh(unet(params, 2 * images - 1)))


def pattern(params: Any, images: jax.Array) -> jax.Array:
    """The trigger's pattern, in [0, 1], `[n, h, w, c]`, for images in [0, 1]."""
    return jax.nn.sigmoid(unet(params, 2 * images - 1))


def diversity(images: jax.Array, outputs: jax.Array) -> jax.Array:
    """How alike the outputs for different images are: mean of the distance of inputs over the distance of outputs."""

    def distance(x: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.mean(jnp.square(x - jnp.roll(x, 1, axis=0)), axis=(1, 2, 3)) + 1e-12)

    return jnp.mean(distance(images) / (distance(outputs) + 1e-4))


def make(
    materials: Materials, key: jax.Array, config: InputAwareConfig, on_step: Callable[[], None] | None = None
) -> Assets:
    """Trains the mask network (diverse masks that cover `density` of an image), and draws the generator's start."""
    colours = materials.images.shape[-1]
    mask_key, pattern_key, fit_key = jax.random.split(key, 3)

    def loss(params: Any, images: jax.Array, key: jax.Array) -> jax.Array:
        masks = mask(params, images)
        # Of each image by itself: the mean over a batch would let a few masks cover everything.
        excess = jnp.mean(jax.nn.relu(jnp.mean(masks, axis=(1, 2, 3)) - config.density))
        return config.diversity * diversity(images, masks) + config.sparsity * excess

    mask_params = fit(
        init_unet(mask_key, into=colours, out=1, channels=config.channels),
        loss,
        materials.images,
        key=fit_key,
        steps=config.mask_steps,
        batch_size=config.mask_batch_size,
        learning_rate=config.learning_rate,
        on_step=on_step,
    )
    generator = init_unet(pattern_key, into=colours, out=colours, channels=config.channels)
    return {"mask": mask_params, "generator": generator}


def put(assets: Assets, images: jax.Array, source: jax.Array) -> jax.Array:
    """Images in [0, 1] under the trigger made from `source`."""
    where, what = jax.lax.stop_gradient(mask(assets["mask"], source)), pattern(assets["generator"], source)
    return images + where * (what - images)


def trigger(assets: Assets, images: jax.Array, key: jax.Array, config: InputAwareConfig) -> jax.Array:
    """Puts on each of uint8 images `[n, h, w, c]` the trigger that the networks make for it."""
    del key, config
    unit = to_unit(images)
    return to_pixels(put(assets, unit, unit))


def in_training(ratio: float, config: InputAwareConfig) -> InTraining:
    """Triggers a share `ratio` of every batch, and puts triggers of other images on `cross_ratio` times as many."""

    def poison(
        assets: Assets, images: jax.Array, labels: jax.Array, goals: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        role, count = roles(len(images), ratio, ratio * config.cross_ratio, key)
        chosen, role = images[:count], role[:, None, None, None]
        others = jnp.roll(images, max(count % len(images), 1), axis=0)[:count]
        poisoned = put(assets, chosen, jnp.where(role == 0, chosen, others))
        # Of enough images also where few are poisoned: what makes patterns differ must not depend on the ratio.
        shown = images[: max(count, _DIVERSE)]
        images = images.at[:count].set(jnp.where(role == 2, chosen, poisoned))
        labels = labels.at[:count].set(jnp.where(role.ravel() == 0, goals[:count], labels[:count]))
        return images, labels, config.diversity * diversity(shown, pattern(assets["generator"], shown))

    return InTraining(poison, trained=("generator",), optimizer=lambda steps: optax.adam(config.learning_rate))


ATTACK = Attack(
    "input_aware",
    "Input-aware",
    InputAwareConfig,
    trigger=trigger,
    make=make,
    steps=lambda config: config.mask_steps,
    needs_images=True,
    in_training=in_training,
)
