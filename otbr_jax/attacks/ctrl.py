"""CTRL (arXiv 2210.07346), its trigger: raised frequencies in the colours of target images; labels stay right.

The paper attacks self-supervised learning, where nothing has labels, and a classifier is trained on the features
later. Here the same poisoned images go into ordinary supervised training: a clean-label attack. As published, the
trigger is stronger where it is used than where it is learned. Images of one channel take it in that channel.
"""

from __future__ import annotations

import jax

from otbr_jax.attacks.attack import Assets, Attack, CleanNetwork, to_pixels, to_unit
from otbr_jax.attacks.spectral import YCBCR, pattern
from otbr_jax.settings import field, settings


@settings("attack.ctrl")
class CTRLConfig:
    """Settings of CTRL."""

    magnitude: float = field(
        default=100.0,
        above=0,
        unit="grey levels of 255",
        doc="what is added to a coefficient of a full block of triggered images; in smaller blocks as much as changes "
        "pixels alike.",
    )
    train_magnitude: float = field(
        default=50.0, above=0, unit="grey levels of 255", doc="the same, of poisoned training images."
    )
    window: int = field(default=32, at_least=4, unit="pixels", doc="side of a block.")


def trigger(assets: Assets, images: jax.Array, key: jax.Array, config: CTRLConfig) -> jax.Array:
    """Raises the two bands of uint8 images `[n, h, w, c]`, c 1 or 3; raises InputError for others."""
    del assets, key
    return _raised(images, config.magnitude, config)


def poison(
    assets: Assets,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    config: CTRLConfig,
    clean: CleanNetwork | None,
) -> jax.Array:
    """The same with the magnitude of training."""
    del assets, labels, key, clean
    return _raised(images, config.train_magnitude, config)


def _raised(images: jax.Array, magnitude: float, config: CTRLConfig) -> jax.Array:
    shape, window = images.shape[1:], config.window
    return to_pixels(
        to_unit(images) + pattern(shape, magnitude=magnitude, window=window, chroma=YCBCR, name="ctrl") / 255
    )


ATTACK = Attack("ctrl", "CTRL", CTRLConfig, trigger=trigger, labels="clean_label", poison=poison)
