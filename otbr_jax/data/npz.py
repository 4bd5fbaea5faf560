"""A user's arrays: a .npz file of images and labels, as people save them."""

from __future__ import annotations

import logging
import pathlib
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np

from otbr_jax.data.stored import Part, Stored, part
from otbr_jax.errors import InputError
from otbr_jax.paths import NPZ, existing

_LOG = logging.getLogger(__name__)
_TEST = (("images", "labels"), ("test_images", "test_labels"), ("x_test", "y_test"), ("X_test", "y_test"))
_TRAIN = (("train_images", "train_labels"), ("x_train", "y_train"), ("X_train", "y_train"))


def read_npz(path: str, image_shape: tuple[int, int, int]) -> Stored:
    """Images, which are not resized, and labels: arrays of a .npz file.

    They are `images` and `labels` for testing, and where there are any `train_images` and `train_labels` for training;
    or `x_test`, `y_test`, `x_train`, `y_train`, as Keras has them. Images are uint8 `[n, h, w, c]`; floating point in
    [0, 1], `[n, c, h, w]` and, if grey, `[n, h, w]` are converted. Labels are integers `[n]`, or one-hot
    `[n, classes]`. One line on the logger lists the conversions.

    Raises:
      InputError: names the file, if it is missing, no .npz, or its arrays are of another kind.
    """
    file_path = existing(path, name="data.path", expected=NPZ, is_there=pathlib.Path.is_file)
    try:
        with open(file_path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            test = _arrays(file_path, file, _first_pair(file, _TEST) or _TEST[0], image_shape)
            training = _first_pair(file, _TRAIN)
            train = None if training is None else _arrays(file_path, file, training, image_shape)
    except InputError:
        raise
    except (ValueError, TypeError, OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{file_path}: expected a .npz file of plain arrays, found: {error}") from None
    return Stored(train, test, file_path.name)


def _first_pair(file: Mapping[str, np.ndarray], pairs: tuple[tuple[str, str], ...]) -> tuple[str, str] | None:
    """The first pair of names of which the file has either."""
    return next((pair for pair in pairs if set(pair) & set(file)), None)


def _arrays(
    path: pathlib.Path, file: Mapping[str, np.ndarray], names: tuple[str, str], image_shape: tuple[int, int, int]
) -> Part:
    try:
        images, labels = (file[name] for name in names)
    except KeyError as error:
        expected = " and ".join(map(repr, names))
        raise InputError(f"{path}: expected arrays {expected}, found none named {error}") from None
    changes: list[str] = []
    pixels = _bytes(_channels_last(images, image_shape, changes), changes)
    if pixels is None or pixels.ndim != 4:
        kind = f"{images.dtype} {images.shape}"
        if images.dtype.kind == "f" and images.size:
            kind += f" in {np.min(images):g}..{np.max(images):g}"
        raise InputError(f"{path}: expected {names[0]!r} as uint8 [n, h, w, c], found {kind}")
    whole = _whole(labels, changes)
    if whole is None or whole.shape != pixels.shape[:1]:
        kind = f"{labels.dtype} {labels.shape}"
        raise InputError(f"{path}: expected {names[1]!r} as {len(pixels)} integers, found {kind}")
    if changes:
        _LOG.warning("%s: read %s", path, ", and ".join(changes))
    return part(pixels, whole)


def _channels_last(images: np.ndarray, image_shape: tuple[int, int, int], changes: list[str]) -> np.ndarray:
    height, width, channels = image_shape
    if images.shape[1:] == (channels, height, width) and images.shape[1:] != image_shape:
        changes.append("images [n, c, h, w] with their channels last")
        return images.transpose(0, 2, 3, 1)
    if images.ndim == 3 and channels == 1:
        changes.append("images [n, h, w] as grey")
        return images[..., None]
    return images


def _bytes(images: np.ndarray, changes: list[str]) -> np.ndarray | None:
    """uint8 in 0..255, from that, or from floating point in [0, 1] that is not all 0 or 1; None for anything else."""
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind == "f" and images.size and np.min(images) >= 0 and np.max(images) <= 1:
        changes.append("images in [0, 1] times 255")
        return np.round(images * 255).astype(np.uint8)
    whole = images.dtype.kind in "iu" or (images.dtype.kind == "f" and bool(np.all(images == np.round(images))))
    if images.size and whole and np.min(images) >= 0 and 1 < np.max(images) <= 255:
        changes.append(f"images of {images.dtype} in 0..255 as uint8")
        return images.astype(np.uint8)
    return None


def _whole(labels: np.ndarray, changes: list[str]) -> np.ndarray | None:
    """Integers `[n]`, from that or from one-hot rows; None for anything else."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and np.all((labels == 0) | (labels == 1)) and np.all(labels.sum(1) == 1):
        changes.append("one-hot labels by where they are 1")
        return np.argmax(labels, axis=1)
    if labels.ndim == 1 and labels.dtype.kind == "f" and np.all(labels == np.round(labels)):
        changes.append(f"labels of {labels.dtype} as integers")
        return labels.astype(np.int64)
    return labels if labels.ndim == 1 and labels.dtype.kind in "iu" else None
