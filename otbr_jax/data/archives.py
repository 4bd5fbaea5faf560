"""Published archives, from the user's folder or the internet; their checksums are verified."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from otbr_jax.errors import InputError


def fetch(manager: Any, archives: Mapping[str, str]) -> list[pathlib.Path]:
    """Paths of `archives` (URL -> MD5), in order.

    Args:
      manager: TFDS's download manager. A file of its manual folder that is named like the archive is not downloaded.
      archives: the checksum of each URL.

    Raises:
      InputError: names the file whose checksum is another.
    """
    try:
        manual = pathlib.Path(manager.manual_dir)
    except AssertionError:  # TFDS's way to say that there is no such folder
        manual = None
    paths = []
    for url, checksum in archives.items():
        path = None if manual is None else manual / url.rpartition("/")[2]
        if path is None or not path.is_file():
            path = pathlib.Path(os.fspath(manager.download(url)))
        verify(path, checksum, source=url)
        paths.append(path)
    return paths


def verify(path: pathlib.Path, checksum: str, *, source: str) -> None:
    """Raises InputError, naming the file and where it is from, unless its MD5 is `checksum`."""
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "md5").hexdigest()
    if digest != checksum:
        raise InputError(f"{path}: expected MD5 {checksum} of {source}, found {digest}")
