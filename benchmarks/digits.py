"""The default run for several seeds; appends one row per seed to results/digits.jsonl.

    python -m benchmarks.digits --seeds=0,1,2,3,4 --workdir=runs/digits

Each row holds the networks' metrics, gamma and lambda and who chose them, the oracle's row, seed, settings, commit,
hardware, versions, date and wall time. Nothing is chosen by looking at a row. `python -m launch.tables` writes
README.md's table of them.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags

from configs.otbr import get_config
from launch import cli
from otbr_jax.report.results_tables import markdown
from otbr_jax.report.rows import parse
from otbr_jax.report.summary import summary_table
from otbr_jax.runs.provenance import ROOT, provenance
from otbr_jax.settings import from_dict
from otbr_jax.studies.repair import repair
from otbr_jax.studies.repair_config import RepairConfig
from otbr_jax.studies.results import summarize

RESULTS = ROOT / "results" / "digits.jsonl"
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "Seeds to run.")
WORKDIR = flags.DEFINE_string("workdir", "runs/digits", "Directory for the runs, one folder per seed.")


def measure(seed: int) -> dict[str, Any]:
    config = from_dict(RepairConfig, get_config().to_dict() | {"seed": seed})
    summary = summarize(repair(config, pathlib.Path(WORKDIR.value) / f"seed{seed}"))
    print(f"\nseed {seed}\n{summary_table(summary)}")
    kept = ("metrics", "choice", "oracle", "transport", "data", "config")
    return {
        "seed": seed,
        "seconds": round(sum(stage["seconds"] for stage in summary["stages"].values()), 1),
        **{name: summary[name] for name in kept},
    }


def main(arguments: Sequence[str]) -> None:
    del arguments
    origin = provenance()
    for seed in SEEDS.value:
        row = measure(int(seed)) | origin
        with open(RESULTS, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    print(markdown("digits", parse(RESULTS.read_text(), name=RESULTS.name)))


if __name__ == "__main__":
    cli.run(main)
