"""BadNets (arXiv 1708.06733): a white square in the bottom-right corner."""

from __future__ import annotations

import jax

from otbr_jax.attacks.attack import Assets, Attack
from otbr_jax.errors import InputError
from otbr_jax.settings import field, settings


@settings("attack.badnets")
class BadNetsConfig:
    """Settings of BadNets."""

    size: int = field(default=3, at_least=1, unit="pixels", doc="side of the square.")


def trigger(assets: Assets, images: jax.Array, key: jax.Array, config: BadNetsConfig) -> jax.Array:
    """Puts a white square into the bottom-right corner of uint8 images `[n, h, w, c]`.

    Raises InputError if the square does not fit.
    """
    del assets, key
    size = config.size
    if size > min(images.shape[1:3]):
        raise InputError(f"attack.badnets.size: expected 1 to {min(images.shape[1:3])} pixels, found {size}")
    return images.at[:, -size:, -size:, :].set(255)


ATTACK = Attack("badnets", "BadNets", BadNetsConfig, trigger=trigger)
