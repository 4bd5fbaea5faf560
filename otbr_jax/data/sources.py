"""Data sets as uint8 arrays in memory: the digits embedded in scikit-learn, or a user's own .npz file."""

from __future__ import annotations

import dataclasses
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from otbr_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the images come from, and how the network wants them.

    Attributes:
      name: a name of `SOURCES`, or `none`: no images at all (a repair needs none; nothing is then measured).
      path: the file of the source `npz`.
      mean: per-channel mean that is subtracted from images in [0, 1]; empty for none.
      std: per-channel standard deviation that they are divided by; empty for none.
    """

    name: str = "digits"
    path: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not all(0 < value < float("inf") for value in self.std):
            raise InputError(f"data.std: expected finite values above 0, found {self.std}")
        if self.name not in (*SOURCES, "none"):
            raise InputError(f"data.name: expected one of {[*SOURCES, 'none']}, found {self.name!r}")
        if len(self.mean) != len(self.std):
            raise InputError(f"data.std: expected as many values as data.mean ({len(self.mean)}), found {self.std}")


class Images(NamedTuple):
    """Images uint8 `[n, h, w, c]` and labels int32 `[n]`."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """`train` is None where a source holds test images only; `provenance` says in a line what the data are."""

    train: Images | None
    test: Images
    provenance: str


def digits(config: DataConfig, image_shape: tuple[int, int, int]) -> Dataset:
    """scikit-learn's 1,797 handwritten digits (8 x 8, 17 grey levels), resized to `image_shape`; 500 for testing."""
    bunch = load_digits()
    images = np.repeat(bunch.images[..., None] / 16, image_shape[2], axis=-1)
    resized = jax.image.resize(images, (len(images), *image_shape), "bilinear")
    pixels = np.asarray(jnp.round(jnp.clip(resized, 0, 1) * 255)).astype(np.uint8)
    labels = bunch.target.astype(np.int32)
    train_x, test_x, train_y, test_y = train_test_split(pixels, labels, test_size=500, stratify=labels, random_state=0)
    return Dataset(
        Images(train_x, train_y),
        Images(test_x, test_y),
        "digits of scikit-learn (UCI optical recognition of handwritten digits, real 8x8 images), "
        f"resized to {image_shape[0]}x{image_shape[1]}; 1,297 training and 500 test images",
    )


def npz(config: DataConfig, image_shape: tuple[int, int, int]) -> Dataset:
    """A user's test images: arrays `images` (uint8 `[n, h, w, c]`) and `labels` (integers `[n]`) of a .npz file.

    Raises InputError, naming the file, if it is missing, no .npz, or its arrays are of another kind.
    """
    path = pathlib.Path(config.path)
    if not path.is_file():
        raise InputError(f"data.path: expected a .npz file, found nothing at {config.path!r}")
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("images", "labels")}
    except KeyError as error:
        raise InputError(f"{path}: expected arrays 'images' and 'labels', found none named {error}") from None
    except (ValueError, TypeError, OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path}: expected a .npz file of plain arrays, found: {error}") from None
    images, labels = arrays["images"], arrays["labels"]
    if images.dtype != np.uint8 or images.ndim != 4:
        raise InputError(f"{path}: expected 'images' as uint8 [n, h, w, c], found {images.dtype} {images.shape}")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{path}: expected 'labels' as {len(images)} integers, found {labels.dtype} {labels.shape}")
    return Dataset(None, Images(images, labels.astype(np.int32)), f"{path.name}: {len(images)} test images")


SOURCES: Mapping[str, Callable[[DataConfig, tuple[int, int, int]], Dataset]] = {"digits": digits, "npz": npz}


def load(config: DataConfig, *, image_shape: tuple[int, int, int], num_classes: int) -> Dataset | None:
    """Loads the data that `config` names; None for the source `none`.

    Raises:
      InputError: if images or labels do not fit a network with this `image_shape` and `num_classes`.
    """
    if config.name == "none":
        return None
    if len(config.mean) not in (0, image_shape[2]):
        raise InputError(f"data.mean: expected {image_shape[2]} values, one per channel, found {config.mean}")
    dataset = SOURCES[config.name](config, image_shape)
    for part in (dataset.train, dataset.test):
        if part is None:
            continue
        if len(part.images) == 0:
            raise InputError(f"data {config.name!r}: expected images, found none")
        if part.images.shape[1:] != tuple(image_shape):
            raise InputError(
                f"data {config.name!r}: expected images of shape {tuple(image_shape)} as model.image_shape says, "
                f"found {part.images.shape[1:]}"
            )
        if part.labels.min() < 0 or part.labels.max() >= num_classes:
            raise InputError(
                f"data {config.name!r}: expected labels in 0..{num_classes - 1} as model.num_classes says, "
                f"found {part.labels.min()}..{part.labels.max()}"
            )
    return dataset


def preprocess(images: jax.Array, config: DataConfig) -> jax.Array:
    """uint8 images -> float32 as the network takes them: divided by 255, then normalised if `config` says so."""
    scaled = images.astype(jnp.float32) / 255
    if not config.mean:
        return scaled
    return (scaled - jnp.array(config.mean)) / jnp.array(config.std)
