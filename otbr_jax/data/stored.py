"""What every source of images gives: labels at once, and pixels of the images that are asked for."""

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


def stratified(labels: np.ndarray, count: int, *, seed: int = 0) -> np.ndarray:
    """Places `[count]`, ascending, of images of which every class has its share, the same ones for the same seed.

    The places for a smaller count are among those for a larger one.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    progress = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        progress[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(order[np.argsort(progress[order], kind="stable")[:count]])
