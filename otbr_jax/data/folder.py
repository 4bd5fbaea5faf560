"""A user's own image files: a folder for each class, in folders for training and testing or in one for all."""

from __future__ import annotations

import collections
import logging
import pathlib
import re
from typing import NamedTuple

import numpy as np

from otbr_jax.data.image_files import decode, suffixes
from otbr_jax.data.stored import Part, Stored
from otbr_jax.errors import InputError
from otbr_jax.paths import TEST_IMAGES, existing, local_path

_LOG = logging.getLogger(__name__)
_TRAIN = ("train", "training")
_TEST = ("test", "testing", "val", "valid", "validation", "eval")
_CLUTTER = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")


class Files(NamedTuple):
    """Images of a folder's classes, and their labels."""

    files: list[pathlib.Path]
    labels: list[int]


def read_folder(path: str, image_shape: tuple[int, int, int]) -> Stored:
    """Images of `FOLDER/train/CLASS/*` and `FOLDER/test/CLASS/*`, or of `FOLDER/CLASS/*`, which are for testing.

    `train` may be missing, and `val` stands for a missing `test`. Classes are labels 0, 1, ... in the order of their
    names; of names that are numbers, in the order of these. Whatever Pillow reads is read; one line on the logger
    counts the files that were skipped, and one names classes without images.

    Raises:
      InputError: if there is no such folder, it has no classes, or other classes for testing than for training.
    """
    root = existing(path, name="data.path", expected=TEST_IMAGES, is_there=pathlib.Path.is_dir)
    try:
        parts = {entry.name.lower(): entry for entry in _folders(root)}
        test = next((parts[name] for name in _TEST if name in parts), None)
        train = next((parts[name] for name in _TRAIN if name in parts), None)
        if test is None and train is None:
            test = root
        if test is None:
            raise InputError(f"{root}: expected a folder of one of the names {', '.join(_TEST[:3])}, found none")
        classes = _classes(test)
        of_training = None if train is None else _classes(train)
        if of_training is not None and of_training != classes:
            odd = min(set(of_training) ^ set(classes))
            only = test.name if odd in classes else train.name if train is not None else ""
            raise InputError(f"{root}: expected the same classes in train and test, found {odd!r} in {only} only")
        return Stored(
            None if train is None else _part(train, classes, image_shape),
            _part(test, classes, image_shape),
            f"{root.name} (a folder of images, as {'x'.join(map(str, image_shape))})",
            len(classes),
        )
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None


def read_classes(path: str, image_shape: tuple[int, int, int]) -> tuple[Part, list[str]]:
    """Images of a folder whose classes are folders, `path/CLASS/*`, and the names of the classes in order.

    Raises:
      InputError: if there is no such folder, or it has no classes.
    """
    root = local_path(path, name="clean.path")
    classes = _classes(root)
    try:
        return _part(root, classes, image_shape), classes
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    return [entry for entry in folder.iterdir() if entry.is_dir() and not _is_clutter(entry)]


def _is_clutter(entry: pathlib.Path) -> bool:
    """Whether it is a file that an operating system leaves in folders."""
    return entry.name.startswith(".") or entry.name in _CLUTTER


def _classes(folder: pathlib.Path) -> list[str]:
    """The classes in the order of their labels."""
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder of classes, found none")
    classes = sorted(entry.name for entry in _folders(folder))
    if not classes:
        raise InputError(f"{folder}: expected a folder for every class, found none")
    by_number = sorted(classes, key=lambda name: [int(part) if part.isdecimal() else part for part in _pieces(name)])
    if by_number == classes:
        return classes
    first = next(place for place, (one, other) in enumerate(zip(classes, by_number, strict=True)) if one != other)
    if all(name.isdecimal() for name in classes):
        _LOG.warning(
            "%s: classes are numbers, and labels follow their order: label %d is %s", folder, first, by_number[first]
        )
        return by_number
    message = "%s: labels follow the names sorted as text: label %d is %s; if it was %s for the network, rename"
    _LOG.warning(message, folder, first, classes[first], by_number[first])
    return classes


def _pieces(name: str) -> list[str]:
    """The parts of a name, text and numbers in turn, text first."""
    return re.split(r"(\d+)", name)


def _part(folder: pathlib.Path, classes: list[str], image_shape: tuple[int, int, int]) -> Part:
    files, labels = _files(folder, classes)

    def images(places: np.ndarray) -> np.ndarray:
        chosen = [files[place] for place in places]
        return decode(chosen, image_shape, name=lambda place: str(chosen[place]))

    return Part(np.array(labels, np.int32), images)


def _files(folder: pathlib.Path, classes: list[str]) -> Files:
    """All image files; one line counts the others."""
    kinds, result = suffixes(), Files([], [])
    skipped: collections.Counter[str] = collections.Counter()
    empty = []
    for label, name in enumerate(classes):
        entries = [entry for entry in (folder / name).iterdir() if not _is_clutter(entry)]
        images = sorted(entry for entry in entries if entry.suffix.lower() in kinds)
        skipped.update(entry.suffix.lower() or "a folder" * entry.is_dir() or entry.name for entry in entries)
        skipped.subtract(entry.suffix.lower() for entry in images)
        result.files.extend(images)
        result.labels.extend([label] * len(images))
        if not images:
            empty.append(name)
    skipped = +skipped
    if skipped:
        counts = ", ".join(f"{count} of {kind}" for kind, count in skipped.most_common(5))
        _LOG.warning("%s: skipped files that are no images: %s", folder, counts)
    if empty and result.files:
        _LOG.warning("%s: no images of %s", folder, ", ".join(empty[:5]))
    return result
