"""Data sets as uint8 arrays in memory: digits of scikit-learn, those of TensorFlow Datasets, or a user's own files."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.data import prepared
from otbr_jax.data.folder import read_folder
from otbr_jax.data.npz import read_npz
from otbr_jax.data.stored import Part, Stored, part
from otbr_jax.errors import InputError
from otbr_jax.extras import needed
from otbr_jax.settings import field, settings, wrong
from otbr_jax.steps.sampling import stratified_sample


class Images(NamedTuple):
    """Images uint8 `[n, h, w, c]` and labels int32 `[n]`."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """`train` is None where a source holds test images only; `provenance` is a line about the data."""

    train: Images | None
    test: Images
    provenance: str


def digits(config: DataConfig, image_shape: tuple[int, int, int]) -> Stored:
    """scikit-learn's 1,797 handwritten digits (8 x 8, 17 grey levels), resized to `image_shape`; 500 for testing."""
    datasets, selection = (
        needed(f"sklearn.{part}", what="data.name=digits") for part in ("datasets", "model_selection")
    )
    bunch = datasets.load_digits()
    images = np.repeat(bunch.images[..., None] / 16, image_shape[2], axis=-1)
    resized = jax.image.resize(images, (len(images), *image_shape), "bilinear")
    pixels = np.asarray(jnp.round(jnp.clip(resized, 0, 1) * 255)).astype(np.uint8)
    train_x, test_x, train_y, test_y = selection.train_test_split(
        pixels, bunch.target, test_size=500, stratify=bunch.target, random_state=0
    )
    return Stored(
        part(train_x, train_y),
        part(test_x, test_y),
        "digits of scikit-learn (UCI optical recognition of handwritten digits, real 8x8 images), "
        f"resized to {image_shape[0]}x{image_shape[1]}",
    )


def npz(config: DataConfig, image_shape: tuple[int, int, int]) -> Stored:
    """A user's arrays, which are not resized; see `read_npz`."""
    return read_npz(config.path, image_shape)


def folder(config: DataConfig, image_shape: tuple[int, int, int]) -> Stored:
    """A user's folder of images, `test/CLASS/*` and maybe `train/CLASS/*`; see `read_folder`."""
    return read_folder(config.path, image_shape)


def catalogue(config: DataConfig, image_shape: tuple[int, int, int], *, name: str) -> Stored:
    """A data set of TensorFlow Datasets that `launch.prepare_data` has prepared; see `read_prepared`."""
    return prepared.read_prepared(name, config.data_dir, image_shape)


SOURCES: Mapping[str, Callable[[DataConfig, tuple[int, int, int]], Stored]] = {
    "digits": digits,
    "npz": npz,
    "folder": folder,
    **{name: functools.partial(catalogue, name=name) for name in prepared.NAMES},
}


@settings("data")
class DataConfig:
    """Where the images come from, and how the network wants them."""

    name: str = field(
        default="digits",
        choices=(*SOURCES, "none"),
        doc="the source, or `none`: no images at all (a repair needs none; nothing is then measured).",
    )
    path: str = field(default="", doc="the file of the source `npz`, or the folder of the source `folder`.")
    mean: tuple[float, ...] = field(
        default=(), doc="per-channel mean that is subtracted from images in [0, 1]; empty for none."
    )
    std: tuple[float, ...] = field(
        default=(), above=0, doc="per-channel standard deviation that they are divided by; empty for none."
    )
    data_dir: str = field(
        default="",
        doc="where TensorFlow Datasets has its data sets; empty for its default, `$TFDS_DATA_DIR` or "
        "`~/tensorflow_datasets`.",
    )
    train_images: int = field(
        default=0,
        at_least=0,
        doc="how many training images to use, 0 for all: always the same ones, of every class its share.",
    )
    test_images: int = field(default=0, at_least=0, doc="the same of test images.")
    note: str = field(default="", doc="a remark about these copies of the data, for reports and results.")

    def check(self) -> None:
        """There is a standard deviation for every mean."""
        if len(self.mean) != len(self.std):
            raise wrong(self, "std", f"as many values as data.mean ({len(self.mean)})")


def load(config: DataConfig, *, image_shape: tuple[int, int, int], num_classes: int) -> Dataset | None:
    """Loads the data that `config` names; None for the source `none`.

    Raises:
      InputError: if the data cannot be read, there are fewer images than `train_images` or `test_images`, or images or
        labels do not fit a network with this `image_shape` and `num_classes`.
    """
    if config.name == "none":
        return None
    if len(config.mean) not in (0, image_shape[2]):
        raise InputError(f"data.mean: expected {image_shape[2]} values, one per channel, found {config.mean}")
    stored = SOURCES[config.name](config, image_shape)
    if stored.classes not in (None, num_classes):
        raise InputError(
            f"data {config.name!r}: expected {num_classes} classes as model.num_classes says, found {stored.classes}"
        )
    parts, counts = {}, []
    for key, name, subset in (("training", "train_images", stored.train), ("test", "test_images", stored.test)):
        available, count = 0 if subset is None else len(subset.labels), getattr(config, name)
        if count > available:
            raise InputError(f"data.{name}: expected at most {available:,}, as many as there are, found {count:,}")
        if subset is not None:
            parts[key] = read_part(
                subset, count or available, name=config.name, image_shape=image_shape, num_classes=num_classes
            )
            counts.append(f"{count:,} of {available:,} {key}" if count else f"{available:,} {key}")
    chosen = ", of every class its share" if config.train_images or config.test_images else ""
    note = f" ({config.note})" if config.note else ""
    provenance = f"{stored.description}{note}: {' and '.join(counts)} images{chosen}"
    return Dataset(parts.get("training"), parts["test"], provenance)


def read_part(
    stored: Part, count: int, *, name: str, image_shape: tuple[int, int, int], num_classes: int, seed: int = 0
) -> Images:
    """That many images of a part, of every class its share.

    Args:
      stored: the part.
      count: how many of its images, at least 1.
      name: of the data, for messages.
      image_shape: of the network's images.
      num_classes: of the network.
      seed: which images; see `stratified_sample`.

    Raises:
      InputError: if there are none, or images or labels do not fit the network.
    """
    if not len(stored.labels):
        raise InputError(f"data {name!r}: expected images, found none")
    if stored.labels.min() < 0 or stored.labels.max() >= num_classes:
        shifted = stored.labels.min() == 1 and stored.labels.max() == num_classes
        raise InputError(
            f"data {name!r}: expected labels in 0..{num_classes - 1} as model.num_classes says, "
            f"found {stored.labels.min()}..{stored.labels.max()}{', which count from 1: subtract 1' if shifted else ''}"
        )
    every = count == len(stored.labels)
    places = np.arange(count) if every else stratified_sample(stored.labels, count, seed=seed)
    images = stored.images(places)
    if images.shape[1:] != tuple(image_shape):
        raise InputError(
            f"data {name!r}: expected images of shape {tuple(image_shape)} as model.image_shape says, "
            f"found {images.shape[1:]}"
        )
    return Images(images, stored.labels[places])


def preprocess(images: jax.Array, config: DataConfig) -> jax.Array:
    """Images -> float32 as the network takes them: uint8 is divided by 255, floats lie in [0, 1]; then normalised."""
    scaled = images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images
    if not config.mean:
        return scaled
    return (scaled - jnp.array(config.mean)) / jnp.array(config.std)
