"""Workers that share the cells of one file of results: who fills which, and which cannot be filled.

A lease is a lock, so it ends with the worker that holds it, also with one that is killed: whatever it had not finished
is free for the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from otbr_jax.errors import InputError
from otbr_jax.files import write_text
from otbr_jax.locks import locked


class Leased(Protocol):
    """What workers take."""

    @property
    def id(self) -> str:
        """Tells it from others; can be a file's name."""

    @property
    def victim(self) -> str:
        """What others may have to be computed with, too, and is computed only once."""


_FAILED = ".failed"
L = TypeVar("L", bound=Leased)


@dataclasses.dataclass(frozen=True)
class Leases:
    """The leases of one file of results, as one worker sees them; see `open_leases`.

    Attributes:
      folder: where their files are.
      earlier: failures from before this worker, which it does not believe.
    """

    folder: pathlib.Path
    earlier: Mapping[str, str]

    @contextlib.contextmanager
    def take(self, cells: Sequence[L]) -> Iterator[L | None]:
        """A cell that no worker has, for this one alone while the context lasts; None if all are taken.

        Rather one whose victim nobody is at either: whoever needs a victim waits while another worker trains it.
        """
        busy: set[str] = set()
        for crowded in (False, True):
            for cell in cells:
                if (cell.victim in busy) != crowded:
                    continue
                with locked(self.folder / cell.id, name="--results", wait=False) as ours:
                    if ours:
                        yield cell
                        return
                busy.add(cell.victim)
        yield None

    def fail(self, cell: Leased, message: str) -> None:
        """Tells the workers of today that a cell cannot be filled; whoever holds its lease may."""
        with contextlib.suppress(InputError):  # on a full disk each of them finds out for itself
            write_text(
                self.folder / f"{cell.id}{_FAILED}", f"{message}\n{os.uname().nodename} {os.getpid()} {time.time_ns()}"
            )

    def failures(self) -> dict[str, str]:
        """Messages by the ids of cells that failed since this worker began."""
        found = _failures(self.folder)
        return {name: text.rpartition("\n")[0] for name, text in found.items() if text != self.earlier.get(name)}


def open_leases(folder: pathlib.Path) -> Leases:
    """The leases in a folder, for a worker that begins now."""
    return Leases(folder, _failures(folder))


def _failures(folder: pathlib.Path) -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob(f"*{_FAILED}"))}
