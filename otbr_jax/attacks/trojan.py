"""TrojanNN (NDSS 2018): a patch whose pixels are optimised to excite neurons of a clean network.

The neurons are those of the penultimate layer that the classifier weighs most, by the sum of their absolute weights.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from otbr_jax.attacks.attack import Assets, Attack, Materials, to_pixels, to_unit
from otbr_jax.errors import InputError
from otbr_jax.inversion import descend
from otbr_jax.settings import field, settings


@settings("attack.trojan")
class TrojanConfig:
    """Settings of Trojan."""

    side: float = field(
        default=0.25,
        above=0,
        at_most=1,
        doc="of the square patch in the bottom-right corner, as a share of the image's shorter side.",
    )
    neurons: int = field(
        default=2,
        at_least=1,
        doc="how many neurons of the penultimate layer are excited, those with the largest weights to the classifier.",
    )
    steps: int = field(default=100, at_least=1, doc="of Adam on the patch's pixels.")
    learning_rate: float = field(default=0.05, above=0, doc="of Adam, pixels lie in [0, 1].")
    batch_size: int = field(default=32, at_least=1, doc="training images under the patch in each step.")


def make(
    materials: Materials, key: jax.Array, config: TrojanConfig, on_step: Callable[[], None] | None = None
) -> Assets:
    """The patch, uint8 `[size, size, c]`: gradient ascent on the chosen neurons' activation under training images."""
    assert materials.clean is not None
    features, images = materials.clean.features, materials.images
    size = max(1, round(config.side * min(images.shape[1:3])))
    batch_size = min(config.batch_size, len(images))
    most = jax.eval_shape(features, jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)).shape[1]
    if config.neurons > most:
        raise InputError(f"attack.trojan.neurons: expected at most {most}, found {config.neurons}")

    start_key, draw_key = jax.random.split(key)
    start, keys = (
        jax.random.uniform(start_key, (size, size, images.shape[-1])),
        jax.random.split(draw_key, config.steps),
    )

    def draw(number: jax.Array) -> jax.Array:
        return to_unit(images[jax.random.choice(keys[number], len(images), (batch_size,), replace=False)])

    def loss(patch: jax.Array, batch: jax.Array, _: None) -> jax.Array:
        return -jnp.mean(features(batch.at[:, -size:, -size:].set(patch))[:, : config.neurons])

    end, _ = descend(
        loss,
        start,
        optimizer=optax.adam(config.learning_rate),
        steps=config.steps,
        batches=draw,
        project=lambda patch: jnp.clip(patch, 0, 1),
        on_step=on_step,
    )
    return {"patch": to_pixels(end.point)}


def trigger(assets: Assets, images: jax.Array, key: jax.Array, config: TrojanConfig) -> jax.Array:
    """Puts the patch into the bottom-right corner of uint8 images `[n, h, w, c]`."""
    del key, config
    size = len(assets["patch"])
    return images.at[:, -size:, -size:].set(assets["patch"])


ATTACK = Attack(
    "trojan",
    "Trojan",
    TrojanConfig,
    trigger=trigger,
    make=make,
    steps=lambda config: config.steps,
    needs_clean_network=True,
    needs_images=True,
)
