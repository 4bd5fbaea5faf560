"""Measures one part of what a GPU or TPU does; `benchmarks/on_device.sh` calls it.

    python -m benchmarks.on_device --part=training --packs=PACKS

Each row is printed, and appended to results/on_device.jsonl; those of the part `bench` go to
results/bench_paper_npz.jsonl. With `--reduced` everything is tiny and rows are only printed.
"""

import json
import pathlib
from collections.abc import Sequence

import jax
from absl import flags

from benchmarks.on_device import parts
from benchmarks.on_device.data import unpack
from benchmarks.on_device.sizes import Sizes, bench, sizes
from launch import cli
from otbr_jax.report.rows import append_row
from otbr_jax.runs.provenance import ROOT, provenance
from otbr_jax.studies.bench_run import run_bench

PART = flags.DEFINE_enum("part", "training", ["data", *parts.PARTS, "bench"], "What is measured.")
PACKS = flags.DEFINE_string("packs", None, "Folder of the packed CIFAR-10.", required=True)
FOLDER = flags.DEFINE_string("folder", "runs/on_device", "Where data and stages are kept; used again by the next part.")
RESULTS = flags.DEFINE_string("results", str(ROOT / "results"), "Folder of the files that rows are appended to.")
REDUCED = flags.DEFINE_bool("reduced", False, "Shows in little time that a part runs to its end.")


def main(arguments: Sequence[str]) -> None:
    del arguments
    part, folder = PART.value, pathlib.Path(FOLDER.value)
    size = sizes(folder / "cifar10.npz", reduced=REDUCED.value)
    if part not in ("training", "unlearning"):
        unpack(pathlib.Path(PACKS.value), size.npz)
    work = folder / "reduced" if REDUCED.value else folder / "work"
    results = work if REDUCED.value else pathlib.Path(RESULTS.value)
    if part == "bench":
        run_bench(bench(size), work, results / "bench_paper_npz.jsonl", say=lambda line: print(line, flush=True))
    if part in parts.PARTS:
        measure(part, size, work, results / "on_device.jsonl")


def measure(part: str, size: Sizes, work: pathlib.Path, results: pathlib.Path) -> None:
    origin = {} if size.reduced else provenance()
    kind = jax.devices()[0].device_kind
    for values in parts.PARTS[part](size, work):
        row = {"part": part, "network": size.network, "device": kind} | values
        print(json.dumps(row), flush=True)
        if not size.reduced:
            append_row(results, row | origin)


if __name__ == "__main__":
    cli.run(main)
