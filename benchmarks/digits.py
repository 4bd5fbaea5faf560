"""The default run for several seeds; appends one row per seed to results/digits.jsonl.

    python -m benchmarks.digits --seeds=0,1,2,3,4 --workdir=runs/digits

Each row holds the networks' metrics, gamma and lambda and who chose them, the oracle's row, seed, settings, commit,
hardware, versions, date and wall time. Nothing is chosen by looking at a row.
"""

import datetime
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Sequence

from absl import app, flags

from configs.otbr import get_config
from otbr_jax.experiments.config import RepairConfig, from_dict
from otbr_jax.experiments.pipeline import repair
from otbr_jax.experiments.results import summarize
from otbr_jax.report.table import summary_table

ROOT = pathlib.Path(__file__).resolve().parent.parent
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "Seeds to run.")
WORKDIR = flags.DEFINE_string("workdir", "runs/digits", "Directory for the runs, one folder per seed.")


def main(arguments: Sequence[str]) -> None:
    del arguments
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", "otbr_jax", "configs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    if changed.stdout:
        raise SystemExit("error: results carry a commit; commit the changes in otbr_jax/ and configs/ first")
    for seed in SEEDS.value:
        config = from_dict(RepairConfig, get_config().to_dict() | {"seed": int(seed)})
        summary = summarize(repair(config, pathlib.Path(WORKDIR.value) / f"seed{seed}"))
        row = {
            "seed": int(seed),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "commit": commit.stdout.strip(),
            "hardware": f"{platform.machine()}, {os.cpu_count()} CPU cores; {', '.join(summary['devices'])}",
            "seconds": round(sum(stage["seconds"] for stage in summary["stages"].values()), 1),
            **{
                name: summary[name]
                for name in ("metrics", "choice", "oracle", "transport", "data", "versions", "config")
            },
        }
        with open(ROOT / "results" / "digits.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"\nseed {seed}\n{summary_table(summary)}")


if __name__ == "__main__":
    app.run(main)
