"""How much a verdict of the default depends on the seed of its search: the same network, searched five times.

    python -m benchmarks.spread --workdir=runs/disarm

Victims of `configs/bench/disarm.py` on scikit-learn's digits, which are reloaded from the bench's working directory or
trained there. Nothing but the key of the inversion and of its images changes. Prints, and appends to
results/spread.jsonl, the suspicion of the attacker's class and the highest one of any class.
"""

import json
import pathlib

import jax
import numpy as np
from absl import flags

from benchmarks.victims import open_cell
from configs.bench.disarm import RESNET, VGG, digits
from launch import cli
from otbr_jax import plan as plans
from otbr_jax.detectors import trigger_size
from otbr_jax.report.rows import append_row
from otbr_jax.runs.provenance import ROOT, provenance
from otbr_jax.studies.bench import Cell
from otbr_jax.studies.repair_config import repaired_by

WORKDIR = flags.DEFINE_string("workdir", "runs/disarm", "Directory of the bench, with its victims.")
SEEDS = flags.DEFINE_integer("seeds", 5, "Of the search, for each network.")
RESULTS = flags.DEFINE_string("results", str(ROOT / "results" / "spread.jsonl"), "File of the rows.")
VICTIMS = (
    *(digits(*VGG, attack, 1) for attack in ("badnets", "blended", "trojan", "lf", "ssba", "input_aware", "none")),
    *(digits(*VGG, "none", seed) for seed in (0, 2)),
    *(digits(*RESNET, attack, 0) for attack in ("badnets", "none")),
)


def searched(cell: Cell, seeds: int) -> list[np.ndarray]:
    """The suspicion of every class, `[classes]`, for each seed of the search."""
    result = open_cell(cell, WORKDIR.value)
    given = {"victim": result.variables}
    steps = trigger_size.DETECTOR.plan(result.config)
    program = jax.jit(lambda key: plans.run(steps, result.setup, given, key=key)["detected"].detected.scores)
    return [np.asarray(program(jax.random.key(seed))) for seed in range(seeds)]


def main(arguments) -> None:
    del arguments
    origin = provenance()
    for cell in VICTIMS:
        scores = searched(cell, SEEDS.value)
        threshold = repaired_by("disarm", cell.config).detection.threshold
        attacked = cell.config.victim.attack.name != "none"
        row = {
            "dataset": cell.config.victim.data.name,
            "network": cell.network,
            "attack": cell.config.victim.attack.name,
            "seed": cell.config.victim.seed,
            "target": [round(float(each[0]), 2) for each in scores] if attacked else None,
            "highest": [round(float(each.max()), 2) for each in scores],
            "flagged": int(sum(each.max() >= threshold for each in scores)),
            "right": int(sum(each.max() >= threshold and each.argmax() == 0 for each in scores)) if attacked else None,
            "searches": len(scores),
            "threshold": threshold,
        }
        print(json.dumps(row), flush=True)
        append_row(pathlib.Path(RESULTS.value), row | origin)


if __name__ == "__main__":
    cli.run(main)
