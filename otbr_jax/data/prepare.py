"""Preparing data sets: downloaded, and written as ArrayRecord files, which are read without TensorFlow."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pathlib
import tempfile

from otbr_jax.data.prepared import NAMES, data_directory, find
from otbr_jax.errors import InputError

_OWN = ("gtsrb", "tiny_imagenet")


def prepare(name: str, data_dir: str = "", manual_dir: str = "") -> str:
    """Downloads and writes a data set, unless it is there already; returns a line about it.

    Everything is written in a temporary folder beside its place and moved there at the end, so that a failure or an
    interrupt leaves nothing behind.

    Args:
      name: one of `prepared.NAMES`.
      data_dir: where data sets are; empty for TensorFlow Datasets' default.
      manual_dir: a folder of archives that need no download, under the names that they were published with.

    Raises:
      InputError: if the name is unknown, TensorFlow is missing, a download fails, an archive is not the published one,
        or files cannot be written.
    """
    if name not in NAMES:
        raise InputError(f"--name: expected one of {[*NAMES]}, found {name!r}")
    if (existing := find(name, data_dir)) is not None:
        return f"{existing} is there already; it stays as it is"
    for package in ("tensorflow", "importlib_resources", "tensorflow_datasets", "PIL"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"--name: preparing needs the package {package}, found none: pip install -e '.[prepare]'")
    if manual_dir and not pathlib.Path(manual_dir).expanduser().is_dir():
        raise InputError(f"--manual_dir: expected a folder of archives, found none at {manual_dir!r}")
    root = data_directory(data_dir)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}.") as temporary:
            folder, counts = _write(name, pathlib.Path(temporary), manual_dir)
            (root / name).mkdir(exist_ok=True)
            target = folder.rename(root / name / folder.name)
    except OSError as error:
        raise InputError(f"--data_dir: cannot write {name} in {root} ({error.strerror or error})") from None
    return f"wrote {target}: {counts}"


def _write(name: str, temporary: pathlib.Path, manual_dir: str) -> tuple[pathlib.Path, str]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no remarks of TensorFlow about the machine
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    if name in _OWN:
        importlib.import_module(f"otbr_jax.data.{name}")  # makes its builder known to TFDS
    builder = tfds.builder(name, data_dir=temporary, file_format="array_record", try_gcs=False)
    config = tfds.download.DownloadConfig(manual_dir=manual_dir or None, try_download_gcs=False)
    try:
        builder.download_and_prepare(download_dir=temporary / "downloads", download_config=config)
    except NonMatchingChecksumError as error:  # of the catalogue's archives; TFDS says how to debug it, in a paragraph
        raise InputError(f"{name}: {' '.join(str(error).partition('To debug')[0].split())}") from None
    except (tfds.download.DownloadError, requests.RequestException) as error:
        raise InputError(f"{name}: cannot download ({error}); --manual_dir takes archives that are here") from None
    splits = builder.info.splits.items()
    return pathlib.Path(builder.data_dir), ", ".join(f"{split.num_examples:,} {key} images" for key, split in splits)
