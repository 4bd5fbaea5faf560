"""Leases of cells: workers that share one file of results run each cell once, and learn which cells failed.

A lease is a lock, so it ends when its worker ends or is killed. Unfinished cells are then free for the others.
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
    """A cell that workers take."""

    @property
    def id(self) -> str:
        """A unique name that can be a file's name."""

    @property
    def victim(self) -> str:
        """The victim, which other cells may need too, and which is computed only once."""


_FAILED = ".failed"
L = TypeVar("L", bound=Leased)


@dataclasses.dataclass(frozen=True)
class Leases:
    """The leases of one file of results, as one worker sees them; see `open_leases`.

    Attributes:
      folder: where their files are.
      earlier: failures from before this worker began, which it ignores.
    """

    folder: pathlib.Path
    earlier: Mapping[str, str]

    @contextlib.contextmanager
    def take(self, cells: Sequence[L]) -> Iterator[L | None]:
        """A free cell, leased to this worker while the context lasts; None if all are taken.

        Cells whose victim is also free come first: a worker would wait while another one trains the same victim.
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
        """Reports to the running workers that a cell failed; only the holder of its lease may call this."""
        with contextlib.suppress(InputError):  # on a full disk each of them fails by itself
            write_text(
                self.folder / f"{cell.id}{_FAILED}", f"{message}\n{os.uname().nodename} {os.getpid()} {time.time_ns()}"
            )

    def failures(self) -> dict[str, str]:
        """Messages by the ids of cells that failed since this worker began."""
        texts = _failures(self.folder)
        return {name: text.rpartition("\n")[0] for name, text in texts.items() if text != self.earlier.get(name)}


def open_leases(folder: pathlib.Path) -> Leases:
    """The leases in a folder, for a worker that begins now."""
    return Leases(folder, _failures(folder))


def _failures(folder: pathlib.Path) -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob(f"*{_FAILED}"))}
