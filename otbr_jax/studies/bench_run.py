"""Runs the cells of a bench, each once, in any number of processes; a bench that was stopped resumes."""

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
"""Seconds between two looks at cells that other processes are running."""


def run_bench(
    grid: Bench,
    workdir: str | os.PathLike[str],
    results: str | os.PathLike[str],
    *,
    say: Callable[[str], None],
    devices: Sequence[jax.Device] | None = None,
) -> int:
    """Runs the cells that have no row in a file of results, one after the other.

    A bench may be stopped at any moment and resumes: finished cells have their rows, finished stages of an unfinished
    cell are reloaded, and a training resumes after its last saved epoch.

    Any number of processes may fill the same file, on any machines that share its folder and `workdir`. Each takes a
    cell that no other process is running, also one left by a process that ended. Each returns when every cell has its
    row or has failed.

    Args:
      grid: the cells.
      workdir: for their stages: a folder for each data set and network, and in it a folder with a report for each
        repair. At the end it also holds figures of all cells together: for repairs `gallery.html` and `triggers.png`
        with the triggers, for detectors `roc.png`.
      results: the JSON-lines file; created if it is missing.
      say: takes a line of text after each cell.
      devices: the devices that share the work; by default all local ones.

    Returns:
      How many rows this process wrote.

    Raises:
      InputError: if the file of results cannot be read or written; or after the last cell, if one failed, with the
        cell's name and what is wrong.
    """
    root, file = local_path(workdir, name="workdir"), local_path(results, name="results")
    origin = provenance()  # of the code that is loaded now, even if the checkout changes meanwhile
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
            with locked(_lock_of(cell, root), name="workdir"):  # a bench with other results may run the same cell
                row = {"cell": cell.name, "id": cell.id, "grid": grid.name} | cell.fill(root, devices=devices) | origin
        except InputError as error:
            failed[cell.id] = str(error)
            leases.fail(cell, str(error))
            say(f"{place} failed: {error}")
            return False
        row |= {"date": today(), "seconds": round(time.monotonic() - began, 1)}
        is_new = append_row(file, row, unless=cell.matches)
        say(f"{place}: {cell.in_words(row)} ({time.monotonic() - began:.0f} s)")
        return is_new

    written, waiting, cells = 0, False, missing
    while cells := left(cells):
        with leases.take(cells) as cell:
            if cell is not None and left([cell]):  # another process may have finished it meanwhile
                written, waiting = written + fill(cell), False
        if cell is None:
            if not waiting:
                say(f"{grid.name}: waits for cells that other processes are running: {len(cells)}")
            waiting = True
            time.sleep(LOOK_EVERY)
    rows = read_rows(file)
    own = [row.values for row in rows if any(cell.matches(row.values) for cell in grid.cells)]
    with locked(root / ".locks" / "pictures", name="workdir"):
        for kind in dict.fromkeys(type(cell) for cell in grid.cells):
            kind.draw(grid, own, root)
    failures = [f"{cell.name}: {failed[cell.id]}" for cell in _without_row(missing, rows) if cell.id in failed]
    if failures:
        raise InputError(f"{len(failures)} of {len(missing)} cells failed, the first: {failures[0]}")
    return written


def _without_row(cells: Sequence[Cell], rows: Sequence[Row]) -> list[Cell]:
    by_name: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_name.setdefault(row.values.get("cell"), []).append(row.values)
    return [cell for cell in cells if not any(cell.matches(row) for row in by_name.get(cell.name, ()))]


def _lock_of(cell: Cell, root: pathlib.Path) -> pathlib.Path:
    """The lock of the folder of a cell's report."""
    return root / ".locks" / hashlib.sha256(cell.name.encode()).hexdigest()[:16]
