"""The clean images that a defender has: a share of a training set, or files of their own."""

from __future__ import annotations

from typing import NamedTuple

from otbr_jax.data import sources
from otbr_jax.data.folder import read_classes
from otbr_jax.data.sources import DataConfig, Dataset, Images
from otbr_jax.data.stored import Part, part
from otbr_jax.errors import InputError
from otbr_jax.settings import field, settings
from otbr_jax.steps.augment import augment
from otbr_jax.types import Augment, unchanged


@settings("clean")
class CleanConfig:
    """Where the clean images come from, and how they are varied."""

    name: str = field(
        default="",
        choices=("", *sources.SOURCES),
        doc="empty for the training set of `data`; `folder` or `npz` for files of one's own, which are used whole; or "
        "another data set of `data.sources.SOURCES`, of whose training images a share is used.",
    )
    path: str = field(
        default="", doc="the folder, with images in `CLASS/`, or the .npz file, with arrays `images` and `labels`."
    )
    data_dir: str = field(default="", doc="see `DataConfig.data_dir`.")
    fraction: float = field(default=0.05, above=0, at_most=1, doc="share of a training set, of every class its share.")
    crop_padding: int = field(
        default=0,
        at_least=0,
        unit="pixels",
        doc="black border around an image before a random crop, 0 for no crop: as the network was trained.",
    )
    flip: bool = field(default=False, doc="whether half of the images are mirrored.")


class Clean(NamedTuple):
    """Clean images, and a line about where they are from."""

    images: Images
    provenance: str


def load_clean(
    config: CleanConfig, dataset: Dataset | None, *, image_shape: tuple[int, int, int], num_classes: int, seed: int
) -> Clean:
    """The defender's clean images.

    Args:
      config: where they are.
      dataset: the run's data, whose training images an empty `clean.name` means.
      image_shape: `(h, w, c)` of the network's images.
      num_classes: of the network.
      seed: which images of a training set.

    Raises:
      InputError: if there are none, they do not fit the network, they are no uint8 images in 0..255, or a class has
        none.
    """
    stored, description, whole = _stored(config, dataset, image_shape)
    count = len(stored.labels) if whole else round(config.fraction * len(stored.labels))
    if not count:
        raise InputError(
            f"clean.fraction: expected at least one image, found {config.fraction:g} of {len(stored.labels):,}"
        )
    images = sources.read_part(
        stored, count, name=description, image_shape=image_shape, num_classes=num_classes, seed=seed
    )
    if images.images.max() <= 1:
        raise InputError(
            f"clean images of {description}: expected uint8 in 0..255, found at most {images.images.max()}: were they "
            "scaled to [0, 1] before?"
        )
    missing = sorted(set(range(num_classes)) - set(images.labels.tolist()))
    if missing:
        raise InputError(
            f"clean images of {description}: expected some of each of {num_classes} classes, found none of class "
            f"{', '.join(map(str, missing[:10]))}"
        )
    share = "" if whole else f", {100 * config.fraction:g} % of {len(stored.labels):,} training images"
    return Clean(images, f"{count:,} clean images of {description}{share}")


def clean_augmentation(config: CleanConfig) -> Augment:
    """How the clean images are varied: `(images, key) -> images`."""
    padding, flip = config.crop_padding, config.flip
    if not (padding or flip):
        return unchanged  # the same as where there are no clean images, so that stages are shared
    return lambda images, key: augment(images, key=key, crop_padding=padding, flip=flip)


def _stored(config: CleanConfig, dataset: Dataset | None, image_shape: tuple[int, int, int]) -> tuple[Part, str, bool]:
    """The images, what they are, and whether they are used whole."""
    if not config.name:
        if dataset is None or dataset.train is None:
            raise InputError(
                "clean.name: expected clean images of your own (`folder`, `npz` or a data set), since the data hold no "
                "training images; found none"
            )
        return part(dataset.train.images, dataset.train.labels), "the training set", False
    if config.name == "folder":
        stored, _ = read_classes(config.path, image_shape)
        return stored, config.path, True
    source = DataConfig(config.name, path=config.path, data_dir=config.data_dir)
    data = sources.SOURCES[config.name](source, image_shape)
    if config.name == "npz":
        return data.test, config.path, True
    if data.train is None:
        raise InputError(f"clean.name: expected a data set with training images, found {config.name!r} without")
    return data.train, config.name, False
