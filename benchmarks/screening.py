"""How often a screening of classes leaves the attacker's one out: `reach.among` against a search of all classes.

    python -m benchmarks.screening --workdir=runs/screening

Victims of `configs/bench/disarm.py` on scikit-learn's digits, ten classes each, which are reloaded from that directory
or trained there. Each is screened with several keys, which draw other pictures and other random triggers. Prints, and
appends to results/screening.jsonl, how many of the screenings kept the attacker's class among the 3, 4 and 5
likeliest.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks.victims import opened
from configs.bench.disarm import RESNET, VGG, digits
from configs.bench.otbr_plus import ATTACKS
from launch import cli
from otbr_jax import plan as plans
from otbr_jax.detectors import short_cuts
from otbr_jax.plan import Plan, Setup
from otbr_jax.report.rows import append_row
from otbr_jax.runs.provenance import ROOT, provenance

WORKDIR = flags.DEFINE_string("workdir", "runs/screening", "Directory of the victims.")
SEEDS = flags.DEFINE_integer("seeds", 5, "Screenings of each network.")
ONLY = flags.DEFINE_string("only", "", "A part of the names of the victims' cells; empty for all.")
RESULTS = ROOT / "results" / "screening.jsonl"
AMONG = (3, 4, 5)
VICTIMS = tuple(digits(*network, attack, 0) for network in (VGG, RESNET) for attack in ATTACKS if attack != "none")


def screenings(setup: Setup, steps: Plan, given: Mapping[str, Any]) -> list[np.ndarray]:
    """The classes that each screening keeps."""
    screened = jax.jit(lambda key: plans.run(steps, setup, given, key=key)["screened"].classes)
    return [np.asarray(screened(jax.random.key(seed))) for seed in range(SEEDS.value)]


def main(arguments: Sequence[str]) -> None:
    """Screens every victim."""
    del arguments
    origin = provenance()
    for cell in (cell for cell in VICTIMS if ONLY.value in cell.name):
        config, setup, given = opened(cell, WORKDIR.value)
        kept = []
        for among in AMONG:
            searched = dataclasses.replace(config, reach=dataclasses.replace(config.reach, among=among))
            found = screenings(setup, short_cuts.plan(searched)[:2], given)
            kept.append(sum(config.attack.target in classes for classes in found))
        row = {
            "network": cell.network,
            "attack": config.attack.name,
            "seed": config.seed,
            "classes": setup.network.num_classes,
            "screenings": SEEDS.value,
            "among": [*AMONG],
            "kept": kept,
        }
        print(json.dumps(row), flush=True)
        append_row(RESULTS, row | origin)


if __name__ == "__main__":
    cli.run(main)
