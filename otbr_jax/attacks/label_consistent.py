"""Label-consistent (arXiv 1912.02771): images of the target class are made adversarial, with a pattern in each corner.

Their labels stay right. PGD against a clean network destroys what an image shows, so that the victim learns the pattern
instead. Triggered test images get the pattern alone. The paper attacks an adversarially trained network;
here it is an ordinary one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from otbr_jax.attacks.attack import Assets, Attack, CleanNetwork, to_pixels, to_unit
from otbr_jax.errors import InputError
from otbr_jax.inversion import descend
from otbr_jax.settings import field, settings


@settings("attack.label_consistent")
class LabelConsistentConfig:
    """Settings of Label-consistent."""

    size: int = field(default=3, at_least=1, unit="pixels", doc="side of the checkered square in each corner.")
    amplitude: float = field(
        default=255.0,
        above=0,
        at_most=255,
        unit="grey levels of 255",
        doc="what the pattern adds to its white pixels, and takes from its black ones.",
    )
    eps: float = field(
        default=16.0,
        at_least=0,
        at_most=255,
        unit="grey levels of 255",
        doc="largest change of a pixel by PGD; 0 for no change.",
    )
    steps: int = field(default=30, at_least=1, doc="of PGD, each 1.5 `eps` over the number of steps.")


def pattern(shape: tuple[int, ...], config: LabelConsistentConfig) -> np.ndarray:
    """1 where the pattern is white, -1 where it is black, 0 elsewhere, `[h, w, 1]`; each corner mirrors the others.

    Raises InputError if the corners overlap.
    """
    most = min(shape[:2]) // 2
    if config.size > most:
        raise InputError(f"attack.label_consistent.size: expected 1 to {most} pixels, found {config.size}")
    rows, columns = (np.minimum(np.arange(side), np.arange(side)[::-1]) for side in shape[:2])
    inside = (rows[:, None] < config.size) & (columns[None, :] < config.size)
    return (inside * np.where((rows[:, None] + columns[None, :]) % 2, -1, 1))[..., None]


def trigger(assets: Assets, images: jax.Array, key: jax.Array, config: LabelConsistentConfig) -> jax.Array:
    """Adds the pattern to all four corners of uint8 images `[n, h, w, c]`; raises InputError if it does not fit."""
    del assets, key
    return to_pixels(to_unit(images) + config.amplitude / 255 * pattern(images.shape[1:], config).astype(np.float32))


def perturb(clean: CleanNetwork, images: jax.Array, labels: jax.Array, *, eps: float, steps: int) -> jax.Array:
    """Images in [0, 1], each changed by at most `eps` (L-infinity) so that the network's loss on its label rises."""

    def loss(perturbed: jax.Array, *_: None) -> jax.Array:
        return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(clean.logits(perturbed), labels))

    end, _ = descend(
        loss,
        images,
        optimizer=optax.chain(optax.scale_by_sign(), optax.scale(1.5 * eps / steps)),
        steps=steps,
        project=lambda perturbed: jnp.clip(jnp.clip(perturbed, images - eps, images + eps), 0, 1),
    )
    return end.point


def poison(
    assets: Assets,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    config: LabelConsistentConfig,
    clean: CleanNetwork,
) -> jax.Array:
    """uint8 images `[n, h, w, c]`, adversarial for a clean network, under the trigger."""
    adversarial = to_pixels(perturb(clean, to_unit(images), labels, eps=config.eps / 255, steps=config.steps))
    return trigger(assets, adversarial, key, config)


ATTACK = Attack(
    "label_consistent",
    "Label-consistent",
    LabelConsistentConfig,
    trigger=trigger,
    labels="clean_label",
    needs_clean_network=True,
    poison=poison,
)
