"""What every source of images returns: all labels, and a function that reads the pixels of chosen images."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Part(NamedTuple):
    """Labels int32 `[n]`, and a function from places `[m]` to those images, uint8 `[m, h, w, c]`."""

    labels: np.ndarray
    images: Callable[[np.ndarray], np.ndarray]


class Stored(NamedTuple):
    """`train` is None where there are test images only; `classes` is None where any number of them fits."""

    train: Part | None
    test: Part
    description: str
    classes: int | None = None


def part(images: np.ndarray, labels: np.ndarray) -> Part:
    """Images uint8 `[n, h, w, c]` that are in memory already, and their labels `[n]`."""
    return Part(labels.astype(np.int32), images.__getitem__)
