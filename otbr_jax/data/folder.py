"""A user's own pictures: FOLDER/train/CLASS/* and FOLDER/test/CLASS/*."""

from __future__ import annotations

import pathlib

import numpy as np

from otbr_jax.data.pictures import decode
from otbr_jax.data.stored import Part, Stored
from otbr_jax.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg")


def read_folder(path: str, image_shape: tuple[int, int, int]) -> Stored:
    """Pictures of a folder whose classes are folders; sorted by name, they are labels 0, 1, ...

    Other files than `SUFFIXES`, and what begins with a dot, are left out. `train` may be missing.

    Raises:
      InputError: if there is no such folder, it has no classes, or other classes for testing than for training.
    """
    root = pathlib.Path(path).expanduser()
    if not path or not root.is_dir():
        raise InputError(f"data.path: expected a folder with test/CLASS/*.png, found none at {path!r}")
    try:
        test = _classes(root / "test")
        train = _classes(root / "train") if (root / "train").exists() else None
        if train is not None and train != test:
            odd = min(set(train) ^ set(test))
            only = "test" if odd in test else "train"
            raise InputError(f"{root}: expected the same classes in train and test, found {odd!r} in {only} only")
        return Stored(
            None if train is None else _part(root / "train", train, image_shape),
            _part(root / "test", test, image_shape),
            f"{root.name} (a folder of pictures, as {'x'.join(map(str, image_shape))})",
            len(test),
        )
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None


def read_classes(path: str, image_shape: tuple[int, int, int]) -> tuple[Part, list[str]]:
    """Pictures of a folder whose classes are folders, `path/CLASS/*`, and the names of the classes in order.

    Raises:
      InputError: if there is no such folder, or it has no classes.
    """
    root = pathlib.Path(path).expanduser()
    classes = _classes(root)
    try:
        return _part(root, classes, image_shape), classes
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None


def _classes(folder: pathlib.Path) -> list[str]:
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder of classes, found none")
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")
    if not classes:
        raise InputError(f"{folder}: expected a folder for every class, found none")
    return classes


def _part(folder: pathlib.Path, classes: list[str], image_shape: tuple[int, int, int]) -> Part:
    files: list[pathlib.Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        pictures = (entry for entry in (folder / name).iterdir() if entry.name[0] != ".")
        found = sorted(entry for entry in pictures if entry.suffix.lower() in SUFFIXES)
        files += found
        labels += [label] * len(found)

    def images(places: np.ndarray) -> np.ndarray:
        chosen = [files[place] for place in places]
        return decode(chosen, image_shape, name=lambda place: str(chosen[place]))

    return Part(np.array(labels, np.int32), images)
