"""Atomic writes: files and folders appear complete or not at all, and a failure is one line."""

from __future__ import annotations

import errno
import glob
import io
import os
import pathlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from otbr_jax.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FULL = ("RESOURCE_EXHAUSTED", "No space left", "Disk quota exceeded", "unexpected pos", "file write failed")


@contextmanager
def writing(path: pathlib.Path, *, name: str = "") -> Iterator[pathlib.Path]:
    """Yields `path` + `.partial` to write to, a file or a folder; the caller renames it.

    A failure removes it, and raises one line that names the path and the reason, whatever a library's message is.

    Args:
      path: the final path.
      name: what is written, for the message; by default the path alone.

    Raises:
      InputError: if it cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    _remove(partial)
    try:
        yield partial
    except InputError:
        _remove(partial)
        raise
    except Exception as error:
        _remove(partial)
        what = f"{name}: " if name else ""
        raise InputError(f"{what}cannot write {path} ({_reason(error)})") from None
    except BaseException:
        _remove(partial)
        raise


def write_bytes(path: pathlib.Path, content: bytes, *, name: str = "") -> None:
    """Writes a file atomically: readers see the old one or the new one; raises InputError if it cannot be written."""
    with writing(path, name=name) as partial:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)


def write_text(path: pathlib.Path, text: str, *, name: str = "") -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode(), name=name)


def write_figure(path: pathlib.Path, figure: Figure, *, name: str = "", **options: Any) -> None:
    """As `write_bytes`, in the format that the suffix says; `options` are those of matplotlib."""
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:] or "png", **options)
    write_bytes(path, content.getvalue(), name=name)


def sync_folder(folder: pathlib.Path) -> None:
    """Makes renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(partial: pathlib.Path) -> None:
    """Removes the file or folder, and Orbax's temporary ones for it, but none with a similar name."""
    for left in (partial, *partial.parent.glob(f"{glob.escape(partial.name)}.orbax-checkpoint-tmp*")):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    text = str(error)
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(word in text for word in _FULL)
    if full:
        return "No space left on device; free some, and the same command goes on"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first = next(iter(text.strip().splitlines()), "no message")
    return f"{type(error).__name__}: {first[:200]}"
