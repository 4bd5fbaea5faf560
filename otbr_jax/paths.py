"""Paths that users give: local ones, with `~` for the home folder."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Callable

from otbr_jax.errors import InputError

CHECKPOINT = "an Orbax checkpoint directory, or a PyTorch or safetensors file"
CHECKPOINTS = "a folder, a file or a list of checkpoints"
CLASSES = "a folder of classes"
GRID = "a Python file with get_grid()"
NPZ = "a .npz file"
TEST_IMAGES = "a folder with test/CLASS/*.png"
PYTHON = "a Python file"
REFERENCE = "an .npz file"
"""What is expected at a path; see `existing`."""

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/+", re.IGNORECASE)


def local_path(path: str | os.PathLike[str], *, name: str) -> pathlib.Path:
    """An absolute path.

    Args:
      path: as it was given.
      name: the argument's name, for messages.

    Raises:
      InputError: if it is an address such as `gs://bucket/folder`, which would become a local folder of that name.
    """
    text = os.fspath(path)
    scheme = _SCHEME.match(text)
    if scheme and scheme[1].lower() == "file":
        text = f"/{text[scheme.end() :]}"
    elif scheme and len(scheme[1]) > 1:  # one letter is a drive of Windows
        raise InputError(
            f"{name}: expected a local path, found {text!r}; copy from or to {scheme[1]}:// by its own tool, or mount "
            "it"
        )
    return pathlib.Path(os.path.expanduser(text)).absolute()


def existing(
    path: str | os.PathLike[str],
    *,
    name: str,
    expected: str,
    is_there: Callable[[pathlib.Path], bool] = pathlib.Path.exists,
) -> pathlib.Path:
    """An absolute path that exists.

    Args:
      path: as it was given.
      name: the argument's name, for messages.
      expected: what it should be, in words.
      is_there: says whether it is, such as `pathlib.Path.is_file`.

    Raises:
      InputError: if it is not, or the path is empty or not local.
    """
    local = local_path(path, name=name)
    if not os.fspath(path) or not is_there(local):
        raise InputError(f"{name}: expected {expected}, found nothing at {os.fspath(path)!r}")
    return local
