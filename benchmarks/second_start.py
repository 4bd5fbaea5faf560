"""How long the main job takes when it starts again; appends a row to results/second_start.jsonl.

    python -m benchmarks.second_start --workdir=runs/second_start

`launch.repair` with its default settings, each time in a fresh process: with an empty folder of compiled programs and a
fresh working directory; again in that working directory; and with those programs in another fresh one. Seconds are wall
time, CPU seconds those of the process on all cores, which say more on a machine that does other things as well.
"""

from __future__ import annotations

import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from absl import flags

from launch import cli
from otbr_jax.report.rows import append_row
from otbr_jax.runs.provenance import ROOT, provenance
from otbr_jax.runs.timing import PARTS

RESULTS = ROOT / "results" / "second_start.jsonl"
WORKDIR = flags.DEFINE_string("workdir", "runs/second_start", "Directory for the runs and the programs; emptied first.")
STARTS = {"first": ("first", "empty"), "again": ("first", "kept"), "elsewhere": ("second", "kept")}
"""The working directory of each start, and what the folder of compiled programs holds then."""


def start(workdir: pathlib.Path, home: pathlib.Path) -> dict[str, Any]:
    """One start: its seconds, CPU seconds, and where those of its stages went."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "TQDM_"))}
    command = [sys.executable, "-m", "launch.repair", f"--workdir={workdir}"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command, env=environment | {"XDG_CACHE_HOME": str(home)}, capture_output=True, text=True, check=True
    )
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(done.stdout, done.stderr, flush=True)
    stages = json.loads((workdir / "metrics.json").read_text())["stages"]
    spent = {name: stage["spent"] for name, stage in stages.items()}
    total = {part: round(sum(own.get(part, 0.0) for own in spent.values()), 2) for part in PARTS}
    reloaded = sum(stage["resumed"] for stage in stages.values())
    return {
        **{"seconds": round(seconds, 1), "cpu_seconds": round(worked, 1), "stages": len(stages), "reloaded": reloaded},
        "spent": total,
        "compile": {name: own.get("compile", 0.0) for name, own in spent.items()},
    }


def main(arguments: Sequence[str]) -> None:
    del arguments
    origin, root = provenance(), pathlib.Path(WORKDIR.value).absolute()
    shutil.rmtree(root, ignore_errors=True)
    row: dict[str, Any] = {name: start(root / folder, root / "home") for name, (folder, _) in STARTS.items()}
    for name in ("again", "elsewhere"):
        for measure in ("seconds", "cpu_seconds"):
            row[f"ratio_{name}_{measure}"] = round(row[name][measure] / row["first"][measure], 3)
    programs = [path for path in (root / "home").rglob("*-cache") if path.is_file()]
    row["programs"] = {"files": len(programs), "megabytes": round(sum(p.stat().st_size for p in programs) / 1e6, 1)}
    append_row(RESULTS, row | origin)
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    cli.run(main)
