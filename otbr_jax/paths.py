"""Paths that people give: local ones, with `~` for the home folder."""

from __future__ import annotations

import os
import pathlib
import re

from otbr_jax.errors import InputError

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/+", re.IGNORECASE)


def local_path(path: str | os.PathLike[str], *, name: str) -> pathlib.Path:
    """An absolute path.

    Args:
      path: as it was given.
      name: the argument's name, for messages.

    Raises:
      InputError: if it is an address such as `gs://bucket/folder`, which would become a local folder of that name.
    """
    given = os.fspath(path)
    scheme = _SCHEME.match(given)
    if scheme and scheme[1].lower() == "file":
        given = f"/{given[scheme.end() :]}"
    elif scheme and len(scheme[1]) > 1:  # one letter is a drive of Windows
        raise InputError(
            f"{name}: expected a local path, found {given!r}; copy from or to {scheme[1]}:// by its own tool, or mount "
            "it"
        )
    return pathlib.Path(os.path.expanduser(given)).absolute()
