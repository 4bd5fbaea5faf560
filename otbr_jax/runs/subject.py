"""The subject and the owner of a working directory, and the names of the files that hold them."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from otbr_jax.errors import InputError
from otbr_jax.files import write_text

SUBJECT, OWNER = "workdir.json", ".owner"
LOCK, LOCKS = ".lock", ".locks"
"""The lock of the whole directory; the folder of its stages' locks."""


def check_subject(root: pathlib.Path, subject: Mapping[str, Any]) -> None:
    """Raises InputError if `root` holds other files, or belongs to another subject; OSError if it is no directory."""
    file = root / SUBJECT
    ours = (LOCK, LOCKS, OWNER, f"{OWNER}.partial", f"{SUBJECT}.partial")
    others = sorted(entry.name for entry in root.iterdir() if entry.name not in ours) if root.exists() else []
    if not file.exists():  # checked last: another process may be creating it
        if others:
            raise InputError(
                f"workdir: expected an empty directory or one of this tool's, found {root} with {others[0]!r}"
            )
        return
    try:
        own = json.loads(file.read_text())
        names = [name for name in sorted(subject) if own.get(name) != subject[name]]
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"workdir: {file} cannot be read ({error}); choose another workdir") from None
    if names:
        raise InputError(
            f"workdir: {root} belongs to another config: expected {names[0]} = {subject[names[0]]!r}, "
            f"found {own.get(names[0])!r}; choose another workdir"
        )


def write_subject(root: pathlib.Path, subject: Mapping[str, Any]) -> None:
    """Writes the subject of a directory, unless it has one."""
    if not (root / SUBJECT).exists():
        write_text(root / SUBJECT, json.dumps(subject, indent=1))


def owner_of(root: pathlib.Path) -> str:
    """The process that uses a directory exclusively; `unknown` if it is not known."""
    try:
        return (root / OWNER).read_text() or "unknown"
    except OSError:
        return "unknown"
