"""Data sets that TensorFlow Datasets has prepared as ArrayRecord files; reading them takes no TensorFlow."""

from __future__ import annotations

import os
import pathlib
import re
import shlex
from typing import Any

import numpy as np

from otbr_jax.data.image_files import decode
from otbr_jax.data.stored import Part, Stored
from otbr_jax.errors import InputError
from otbr_jax.extras import needed
from otbr_jax.paths import local_path

NAMES = ("cifar10", "mnist", "gtsrb", "tiny_imagenet")


def data_directory(data_dir: str) -> pathlib.Path:
    """Where data sets are: `data_dir`, or by default where TensorFlow Datasets has them."""
    return local_path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets", name="data.data_dir")


def find(name: str, data_dir: str) -> pathlib.Path | None:
    """The directory of a data set's newest prepared version; None if there is none."""
    versions = (path for path in (data_directory(data_dir) / name).glob("*.*.*") if path.is_dir())
    numbered = (path for path in versions if re.fullmatch(r"\d+\.\d+\.\d+", path.name))
    return max(numbered, key=lambda path: [int(number) for number in path.name.split(".")], default=None)


def read_prepared(name: str, data_dir: str, image_shape: tuple[int, int, int]) -> Stored:
    """A data set of `NAMES`, prepared by `launch.prepare_data` or by TensorFlow Datasets itself as ArrayRecord.

    Raises:
      InputError: if it is not prepared, or files are missing, damaged or of another length than was noted.
    """
    folder = find(name, data_dir)
    if folder is None:
        root = data_directory(data_dir)
        there = "none there" if root.is_dir() else "no such folder"
        raise InputError(
            f"data.data_dir: expected the data set {name!r} in {root}, found {there}; to prepare it: "
            f"{_command(name, data_dir)}"
        )
    # Imported here: other sources need not wait half a second for it.
    tfds = needed("tensorflow_datasets", what=f"data.name={name}")

    try:
        builder = tfds.builder_from_directory(folder)
        info = builder.info
        shape, classes = tuple(info.features["image"].shape), info.features["label"].num_classes
        splits, file_format = info.splits, info.file_format.value
    except Exception as error:  # whatever damaged files of descriptions do
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{folder}: expected a data set of images with labels, found: {reason[:200]}") from None
    if file_format != "array_record":
        raise InputError(
            f"{folder}: expected files of kind array_record, found {file_format}; prepare it in another data.data_dir: "
            f"{_command(name, 'DIR')}"
        )
    if not {"train", "test"} <= set(splits):
        raise InputError(f"{folder}: expected splits 'train' and 'test', found {sorted(splits)}")
    for split in ("train", "test"):
        _check_shards(splits[split], _command(name, data_dir))
    decoders = {"image": tfds.decode.SkipDecoding()}
    train, test = (
        _part(builder.as_data_source(split=split, decoders=decoders), f"{folder}: split {split!r}", image_shape)
        for split in ("train", "test")
    )
    altered = "" if shape == tuple(image_shape) else f", as {'x'.join(map(str, image_shape))}"
    return Stored(train, test, f"{info.full_name} of TensorFlow Datasets{altered}", classes)


def _check_shards(split: Any, command: str) -> None:
    """Checks the number of records in every file; a damaged or truncated file has none."""
    from array_record.python.array_record_module import ArrayRecordReader

    for path, expected in zip(split.filepaths, split.shard_lengths, strict=True):
        advice = f"remove {path.parent} and prepare it again: {command}"
        if not path.is_file():
            raise InputError(f"{path}: expected a file of {expected:,} examples, found nothing; {advice}")
        count = ArrayRecordReader(os.fspath(path)).num_records()
        if count != expected:
            raise InputError(f"{path}: expected {expected:,} examples, found {count:,} readable ones; {advice}")


def _part(source: Any, name: str, image_shape: tuple[int, int, int]) -> Part:
    try:
        examples = source.__getitems__(range(len(source)))  # one call: a tenth of the time of as many single ones
        labels = np.array([example["label"] for example in examples], np.int32)
    except Exception as error:  # whatever damaged records do
        raise InputError(f"{name}: expected readable examples, found: {' '.join(str(error).split())}") from None

    def images(places: np.ndarray) -> np.ndarray:
        chosen = [examples[place]["image"] for place in places]
        return decode(chosen, image_shape, name=lambda place: f"{name}, example {places[place]}")

    return Part(labels, images)


def _command(name: str, data_dir: str) -> str:
    place = f" --data_dir={shlex.quote(data_dir)}" if data_dir else ""
    return f"python -m launch.prepare_data --name={name}{place}"
