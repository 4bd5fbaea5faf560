"""TSBD's default run for several seeds and a clean network; appends a row for each to results/tsbd_digits.jsonl.

    python -m benchmarks.tsbd_digits --seeds=0,1,2 --workdir=runs/tsbd_digits

The victims are those of `benchmarks.digits`. Each row holds the metrics, n and who chose it, the oracle's row, the
seed, settings, commit, hardware, versions, date and wall time. `python -m launch.tables` writes README.md's table of
them.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags

from configs.tsbd import get_config
from launch import cli
from otbr_jax.attacks.registry import AttackConfig
from otbr_jax.experiments.bench import append_row, plain_config
from otbr_jax.experiments.config import from_dict
from otbr_jax.experiments.pipeline import repair
from otbr_jax.experiments.provenance import ROOT, provenance
from otbr_jax.experiments.repair_config import RepairConfig
from otbr_jax.experiments.results import summarize
from otbr_jax.report.table import summary_table

RESULTS = ROOT / "results" / "tsbd_digits.jsonl"
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds to run.")
ATTACKS = flags.DEFINE_list("attacks", ["badnets", "none"], "Attacks; none is a clean network.")
WORKDIR = flags.DEFINE_string("workdir", "runs/tsbd_digits", "Directory for the runs, one folder for each.")


def measure(attack: str, seed: int) -> dict[str, Any]:
    config = from_dict(RepairConfig, get_config().to_dict() | {"seed": seed})
    config = dataclasses.replace(config, attack=AttackConfig(name=attack))
    summary = summarize(repair(config, pathlib.Path(WORKDIR.value) / f"{attack}{seed}"))
    print(f"\n{attack}, seed {seed}\n{summary_table(summary)}", flush=True)
    kept = ("metrics", "choice", "selection", "oracle", "sweep", "unlearning", "clean", "data")
    return {
        "attack": attack,
        "seed": seed,
        "seconds": round(sum(stage["seconds"] for stage in summary["stages"].values()), 1),
        **{name: summary[name] for name in kept},
        "config": plain_config(config),
    }


def main(arguments: Sequence[str]) -> None:
    del arguments
    origin = provenance()
    for seed in SEEDS.value:
        for attack in ATTACKS.value:
            append_row(RESULTS, measure(attack, int(seed)) | origin)


if __name__ == "__main__":
    cli.run(main)
