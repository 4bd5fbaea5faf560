"""FTrojan (arXiv 2111.10991): a middle and a high frequency of the colours are raised.

Coefficients of a block DCT of the channels U and V are raised; a grey image's only channel takes their place. Blocks
are 32 pixels wide, as published, or as wide as a smaller image.
"""

from __future__ import annotations

import jax

from otbr_jax.attacks.attack import Assets, Attack, to_pixels, to_unit
from otbr_jax.attacks.spectral import YUV, pattern
from otbr_jax.settings import field, settings


@settings("attack.ftrojan")
class FTrojanConfig:
    """Settings of FTrojan."""

    magnitude: float = field(
        default=30.0,
        above=0,
        unit="grey levels of 255",
        doc="what is added to a coefficient of a full block; in smaller blocks as much as changes pixels alike.",
    )
    window: int = field(default=32, at_least=4, unit="pixels", doc="side of a block.")


def trigger(assets: Assets, images: jax.Array, key: jax.Array, config: FTrojanConfig) -> jax.Array:
    """Raises the two bands of uint8 images `[n, h, w, c]`, c 1 or 3; raises InputError for others."""
    del assets, key
    shape, magnitude = images.shape[1:], config.magnitude
    added = pattern(shape, magnitude=magnitude, window=config.window, chroma=YUV, name="ftrojan")
    return to_pixels(to_unit(images) + added / 255)


ATTACK = Attack("ftrojan", "FTrojan", FTrojanConfig, trigger=trigger)
