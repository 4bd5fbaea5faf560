"""How soon the library is imported and a program answers; appends a row to results/start.jsonl.

    python -m benchmarks.start

Each is started in a fresh process, in turns, and the median counts. Seconds are wall time, CPU seconds those of the
process. Ratios are of CPU seconds, which other programs on the machine disturb less: to `import jax`, and to Python
that does nothing.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from absl import flags

from launch import cli
from otbr_jax.report.rows import append_row
from otbr_jax.runs.provenance import ROOT, provenance

RESULTS = ROOT / "results" / "start.jsonl"
REPEATS = flags.DEFINE_integer("repeats", 9, "How often each is started.", lower_bound=1)
STARTS = {
    "python": ("-c", "pass"),
    "jax": ("-c", "import jax"),
    "otbr_jax": ("-c", "import otbr_jax"),
    "public_names": ("-c", "from otbr_jax import *"),
    "defences": ("-c", "import otbr_jax.defenses.registry"),
    "help": ("-m", "launch.repair", "--help"),
    "wrong_flag": ("-m", "launch.repair", "--config.reech.steps=3"),
    "missing_file": ("-m", "launch.repair", "--config.model.checkpoint=missing.pt"),
}
"""What Python is started with."""


def start(arguments: Sequence[str]) -> dict[str, float]:
    """The seconds and CPU seconds of one start."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=False)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": worked}


def main(arguments: Sequence[str]) -> None:
    del arguments
    origin = provenance()
    runs: dict[str, list[dict[str, float]]] = {name: [start(own)] for name, own in STARTS.items()}  # compiles modules
    for name in runs:
        runs[name].clear()
    for _ in range(REPEATS.value):
        for name, own in STARTS.items():
            runs[name].append(start(own))
    row: dict[str, Any] = {"repeats": REPEATS.value}
    for name, launches in runs.items():
        row[name] = {each: statistics.median(one[each] for one in launches) for each in ("seconds", "cpu_seconds")}
    for other in ("jax", "python"):
        ratios = {name: row[name]["cpu_seconds"] / row[other]["cpu_seconds"] for name in STARTS}
        row[f"ratio_{other}"] = {name: round(ratio, 2) for name, ratio in ratios.items()}
    for name in STARTS:
        row[name] = {each: round(value, 3) for each, value in row[name].items()}
    append_row(RESULTS, row | origin)
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    cli.run(main)
