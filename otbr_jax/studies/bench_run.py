"""Fills the cells of a bench, together with whoever else does: from wherever it was stopped, and each of them once."""

from __future__ import annotations

import hashlib
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from otbr_jax.errors import InputError
from otbr_jax.locks import locked
from otbr_jax.paths import local_path
from otbr_jax.report.rows import Row, append_row, leases_folder, read_rows
from otbr_jax.runs.leases import open_leases
from otbr_jax.runs.provenance import provenance, today
from otbr_jax.studies.bench import Bench, Cell

LOOK_EVERY = 2.0
"""Seconds between two looks at cells that other processes have."""


def run_bench(
    grid: Bench,
    workdir: str | os.PathLike[str],
    results: str | os.PathLike[str],
    *,
    say: Callable[[str], None],
    devices: Sequence[jax.Device] | None = None,
) -> int:
    """Fills the rows of a grid that a file of results lacks, one after the other.

    A bench that is stopped, at any moment, goes on where it was: finished cells have their rows, finished stages of an
    unfinished cell are reloaded, and a training goes on after its last saved epoch.

    Any number of processes may fill the same file, on any machines that share its folder, and `workdir`. Each takes a
    cell that nobody has, and those of a process that ends; each returns when every cell has its row or has failed.

    Args:
      grid: the cells.
      workdir: for their stages; a folder for each data set and network, in it one with a report for each repair. At the
        end it holds what cells of each kind draw together: of repairs `gallery.html` and `triggers.png`, with the
        triggers of all that were run there; of detectors `roc.png`.
      results: the JSON-lines file; made if it is missing.
      say: takes a line of text after each cell.
      devices: the devices that share the work; by default all local ones.

    Returns:
      How many rows were written, by this process.

    Raises:
      InputError: if the file of results cannot be read or written; or after the last cell, if one could not be run (the
        others are), with the cell's name and what is wrong.
    """
    root, file = local_path(workdir, name="workdir"), local_path(results, name="results")
    origin = provenance()  # of the code that is loaded now, not of what the checkout becomes meanwhile
    leases = open_leases(leases_folder(file))
    missing = _without_row(grid.cells, read_rows(file))
    say(f"{grid.name}: {len(grid.cells) - len(missing)} of {len(grid.cells)} cells are in {file}")
    failed: dict[str, str] = {}

    def left(cells: Sequence[Cell]) -> list[Cell]:
        failed.update(leases.failures())
        return [cell for cell in _without_row(cells, read_rows(file)) if cell.id not in failed]

    def fill(cell: Cell) -> bool:
        began, place = time.monotonic(), f"[{missing.index(cell) + 1}/{len(missing)}] {cell.name}"
        try:
            with locked(_lock_of(cell, root), name="workdir"):  # of a bench with another file of results
                row = {"cell": cell.name, "id": cell.id, "grid": grid.name} | cell.fill(root, devices=devices) | origin
        except InputError as error:
            failed[cell.id] = str(error)
            leases.fail(cell, str(error))
            say(f"{place} failed: {error}")
            return False
        row |= {"date": today(), "seconds": round(time.monotonic() - began, 1)}
        is_new = append_row(file, row, unless=cell.is_of)
        say(f"{place}: {cell.in_words(row)} ({time.monotonic() - began:.0f} s)")
        return is_new

    written, waiting, cells = 0, False, missing
    while cells := left(cells):
        with leases.take(cells) as cell:
            if cell is not None and left([cell]):  # still, now that nobody else has it
                written, waiting = written + fill(cell), False
        if cell is None:
            if not waiting:
                say(f"{grid.name}: waits for cells that other processes have: {len(cells)}")
            waiting = True
            time.sleep(LOOK_EVERY)
    found = read_rows(file)
    kept = [row.values for row in found if any(cell.is_of(row.values) for cell in grid.cells)]
    with locked(root / ".locks" / "pictures", name="workdir"):
        for kind in dict.fromkeys(type(cell) for cell in grid.cells):
            kind.draw(grid, kept, root)
    failures = [f"{cell.name}: {failed[cell.id]}" for cell in _without_row(missing, found) if cell.id in failed]
    if failures:
        raise InputError(f"{len(failures)} of {len(missing)} cells failed, the first: {failures[0]}")
    return written


def _without_row(cells: Sequence[Cell], found: Sequence[Row]) -> list[Cell]:
    named: dict[Any, list[Mapping[str, Any]]] = {}
    for row in found:
        named.setdefault(row.values.get("cell"), []).append(row.values)
    return [cell for cell in cells if not any(cell.is_of(row) for row in named.get(cell.name, ()))]


def _lock_of(cell: Cell, root: pathlib.Path) -> pathlib.Path:
    """The lock of the folder that a cell's report is written to."""
    return root / ".locks" / hashlib.sha256(cell.name.encode()).hexdigest()[:16]
