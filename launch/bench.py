"""Runs benches: `python -m launch.bench --grid=configs/bench/cpu.py --workdir=runs/bench`.

Each cell of a grid (data x network x attack x defence x seed) becomes one line of results/bench_NAME.jsonl below the
current folder. Finished cells are skipped. A bench that was stopped resumes inside the cell, even inside a training.
Several grids run one after the other and share their victims. Cells of one network share compiled programs, also after
a restart. `launch.tables` writes the rows into the tables of the docs. From another folder:
`PYTHONPATH=CHECKOUT python -m launch.bench`, with the same grids.

To share the work, start the same command several times: on one machine, or on many that share its folder. Each process
takes a cell that no other has. Processes may be killed or added at any time: every cell gets one row. On a machine with
several GPUs give each process its own:

    for gpu in 0 1 2 3; do CUDA_VISIBLE_DEVICES=$gpu python -m launch.bench --grid=GRID.py --workdir=WORK & done; wait

The shared folder needs locks that work across hosts: NFS 4 has them, Lustre with the mount option `flock`. Locks are in
`.leases` beside the results, and in `.locks` in the working directory.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from absl import flags

from launch import cli
from otbr_jax.errors import InputError
from otbr_jax.paths import GRID as A_GRID
from otbr_jax.paths import existing

GRID = flags.DEFINE_multi_string(
    "grid", ["configs/bench/cpu.py"], "Python file whose get_grid() returns a Bench, here or in the checkout."
)
WORKDIR = flags.DEFINE_string("workdir", "runs/bench", "Directory for the stages and reports of all cells.")
RESULTS = flags.DEFINE_string(
    "results", None, "File of one grid's rows; by default results/bench_NAME.jsonl below the current folder."
)
ONLY = flags.DEFINE_string("only", "", "Runs only cells whose name contains this, such as /wanet/.")
NOTES = flags.DEFINE_multi_string("note", [], "DATA=TEXT: what a reader has to know about this copy of a data set.")


def main(arguments: Sequence[str]) -> None:
    """Runs the cells that have no row yet."""
    from otbr_jax.studies.bench import load_grid
    from otbr_jax.studies.bench_run import run_bench

    del arguments
    notes = dict(_pair(note) for note in NOTES.value)
    grids = [load_grid(cli.in_checkout(path), only=ONLY.value, notes=notes) for path in GRID.value]
    for grid in grids:
        results = RESULTS.value or f"results/bench_{grid.name}.jsonl"
        written = run_bench(grid, WORKDIR.value, results, say=lambda line: print(line, flush=True))
        print(f"{written} rows written to {results}")


def check() -> None:
    """Raises InputError if the flags are wrong."""
    if RESULTS.value and len(GRID.value) > 1:
        raise InputError(f"--results: expected none beside {len(GRID.value)} grids, found {RESULTS.value!r}")
    for note in NOTES.value:
        _pair(note)
    for path in GRID.value:
        existing(cli.in_checkout(path), name="--grid", expected=A_GRID, is_there=pathlib.Path.is_file)


def _pair(note: str) -> tuple[str, str]:
    name, equals, text = note.partition("=")
    if not equals:
        raise InputError(f"--note: expected DATA=TEXT, found {note!r}")
    return name, text


if __name__ == "__main__":
    cli.run(main, check=check)
