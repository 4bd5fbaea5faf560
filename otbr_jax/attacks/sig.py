"""SIG (arXiv 1902.11237): vertical waves on images of the target class only, whose labels stay right."""

from __future__ import annotations

import jax
import numpy as np

from otbr_jax.attacks.attack import Assets, Attack, to_pixels, to_unit
from otbr_jax.errors import InputError
from otbr_jax.settings import field, settings


@settings("attack.sig")
class SIGConfig:
    """Settings of SIG."""

    amplitude: float = field(default=40.0, above=0, unit="grey levels of 255", doc="of the sine.")
    frequency: float = field(default=6.0, above=0, doc="periods over the image's width.")


def trigger(assets: Assets, images: jax.Array, key: jax.Array, config: SIGConfig) -> jax.Array:
    """Adds amplitude sin(2 pi frequency j / w) to column j of uint8 images `[n, h, w, c]`.

    Raises InputError for images so narrow that the wave is zero in every column.
    """
    del assets, key
    width = images.shape[2]
    wave = config.amplitude / 255 * np.sin(2 * np.pi * config.frequency * np.arange(width) / width)
    if np.max(np.abs(wave)) < 0.5 / 255:
        raise InputError(
            f"attack.sig.frequency: expected a wave that images of width {width} can show, found {config.frequency:g}"
        )
    return to_pixels(to_unit(images) + wave[:, None].astype(np.float32))


ATTACK = Attack("sig", "SIG", SIGConfig, trigger=trigger, labels="clean_label")
