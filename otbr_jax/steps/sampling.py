"""Stratified samples and splits of a set of images."""

from __future__ import annotations

import numpy as np

from otbr_jax.errors import InputError


def stratified_sample(labels: np.ndarray, count: int, *, seed: int = 0) -> np.ndarray:
    """Indices `[count]`, ascending, of a stratified sample of images; the same for the same seed.

    The indices for a smaller count are among those for a larger one.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    progress = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        progress[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(order[np.argsort(progress[order], kind="stable")[:count]])


def split_folds(labels: np.ndarray, *, held_out: float, folds: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Stratified indices of images to fit `[folds, n]` and to hold out `[folds, m]`.

    No image is held out twice.

    Args:
      labels: int `[n + m]`.
      held_out: share that is held out each time, in (0, 1).
      folds: number of folds; at most `1 / held_out`.
      seed: of the split.

    Raises:
      InputError: if nothing would be held out, or nothing left.
    """
    count = len(labels)
    size = round(held_out * count)
    if size < 1 or folds * size > count or size == count:
        raise InputError(
            f"selection.held_out: expected a share that {folds} times fits into {count} images, found {held_out:g}"
        )
    # Every prefix of the order is stratified, and so are the next parts.
    order: list[int] = []
    left = np.arange(count)
    for _ in range(folds):
        chosen = left[stratified_sample(labels[left], size, seed=seed)]
        order += chosen.tolist()
        left = np.setdiff1d(left, chosen)
    held = np.array(order).reshape(folds, size)
    return np.stack([np.setdiff1d(np.arange(count), fold) for fold in held]), held
