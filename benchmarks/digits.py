"""The default run for several seeds; appends one row per seed to results/digits.jsonl.

    python -m benchmarks.digits --seeds=0,1,2,3,4 --workdir=runs/digits
    python -m benchmarks.digits --seeds=      # only prints the table of README.md

Each row holds the networks' metrics, gamma and lambda and who chose them, the oracle's row, seed, settings, commit,
hardware, versions, date and wall time. Nothing is chosen by looking at a row.
"""

import datetime
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags

from benchmarks.provenance import ROOT, git, hardware
from configs.otbr import get_config
from launch import cli
from otbr_jax.experiments.config import RepairConfig, from_dict
from otbr_jax.experiments.pipeline import repair
from otbr_jax.experiments.results import summarize
from otbr_jax.report.table import percent, summary_table

RESULTS = ROOT / "results" / "digits.jsonl"
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "Seeds to run.")
WORKDIR = flags.DEFINE_string("workdir", "runs/digits", "Directory for the runs, one folder per seed.")


def measure(seed: int) -> dict[str, Any]:
    config = from_dict(RepairConfig, get_config().to_dict() | {"seed": seed})
    summary = summarize(repair(config, pathlib.Path(WORKDIR.value) / f"seed{seed}"))
    print(f"\nseed {seed}\n{summary_table(summary)}")
    kept = ("metrics", "choice", "oracle", "transport", "data", "versions", "config")
    return {
        "seed": seed,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": git("rev-parse", "HEAD"),
        "hardware": hardware(),
        "seconds": round(sum(stage["seconds"] for stage in summary["stages"].values()), 1),
        **{name: summary[name] for name in kept},
    }


def markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| seed | victim ACC / ASR | pruned only | repaired ACC / ASR / RA | oracle's gamma: ACC / ASR |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        victim, pruned, fused = (row["metrics"][name] for name in ("victim", "pruned", "fused"))
        oracle = row["oracle"]
        cells = (
            f"{percent(victim['acc'])} / {percent(victim['asr'])}",
            f"{percent(pruned['acc'])} / {percent(pruned['asr'])}",
            f"**{percent(fused['acc'])} / {percent(fused['asr'])}** / {percent(fused['ra'])}",
            f"{oracle['gamma']:g}: {percent(oracle['fused']['acc'])} / {percent(oracle['fused']['asr'])}",
        )
        lines.append(f"| {row['seed']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    del arguments
    if SEEDS.value and git("status", "--porcelain", "--", "otbr_jax", "configs"):
        raise SystemExit("error: results carry a commit; commit the changes in otbr_jax/ and configs/ first")
    for seed in SEEDS.value:
        row = measure(int(seed))
        with open(RESULTS, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    print(markdown_table([json.loads(line) for line in RESULTS.read_text().splitlines()]))


if __name__ == "__main__":
    cli.run(main)
