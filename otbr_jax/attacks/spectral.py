"""Patterns that lie in two bands of the discrete cosine transform, for attacks in the frequency domain.

Adding a number to a coefficient of a block adds a multiple of that coefficient's cosine to the block, whatever the
image holds. Such a trigger is one fixed pattern, tiled over the image.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from otbr_jax.errors import InputError

_LEAST = 4  # pixels: below, the two bands are one


class Chroma(NamedTuple):
    """What one unit of each of two colour-difference channels adds to red, green and blue."""

    first: tuple[float, float, float]
    second: tuple[float, float, float]


YUV = Chroma((0.0, -0.394642, 2.032062), (1.139883, -0.580622, 0.0))
"""U and V of analogue video (BT.601)."""
YCBCR = Chroma((0.0, -0.344136, 1.772), (1.402, -0.714136, 0.0))
"""Cb and Cr of JPEG."""


def bands(side: int, window: int) -> tuple[int, int]:
    """The middle and the highest band of a block with this side; 15 and 31 of 32."""
    block = min(side, window)
    return 15 * block // 32, block - 1


def pattern(shape: tuple[int, ...], *, magnitude: float, window: int, chroma: Chroma, name: str) -> np.ndarray:
    """What a trigger adds to images `[h, w, c]`, in grey levels, float32.

    Blocks have the side `window`, or that of a smaller image; those at the far edges are cut off. The magnitude is
    that of a full block: in smaller ones coefficients are scaled down, so that pixels change as much.

    Args:
      shape: of an image; of one channel, which takes the pattern itself, or three, which take it as colour.
      magnitude: what is added to the coefficients (orthonormal DCT) of the bands of `bands`, in both chroma channels.
      window: side of a full block, in pixels.
      chroma: the two channels.
      name: of the attack, for errors.

    Raises:
      InputError: for images of another number of channels, or so small that the two bands are one.
    """
    height, width, channels = shape
    if channels not in (1, 3):
        raise InputError(f"attack.name: expected an attack for images of {channels} channels, found {name!r}")
    if min(height, width, window) < _LEAST:
        raise InputError(f"attack.name: expected an attack for images of {height} x {width} pixels, found {name!r}")
    blocks = [min(side, window) for side in (height, width)]
    block = sum(
        np.outer(_cosine(row, blocks[0]), _cosine(column, blocks[1]))
        for row, column in zip(bands(height, window), bands(width, window), strict=True)
    )
    block = block * magnitude * np.sqrt(blocks[0] * blocks[1]) / window
    repeats = [-(-side // size) for side, size in zip((height, width), blocks, strict=True)]
    tiled = np.tile(block, repeats)[:height, :width, None]
    weights = np.ones(1) if channels == 1 else np.add(chroma.first, chroma.second)
    return (tiled * weights).astype(np.float32)


def _cosine(band: int, size: int) -> np.ndarray:
    """A basis vector of the orthonormal DCT-II; not that of the mean."""
    return np.sqrt(2 / size) * np.cos(np.pi * (2 * np.arange(size) + 1) * band / (2 * size))
