"""How often a screening leaves the attacker's class out: `inversion.among` against a search of a hundred classes.

    python -m benchmarks.screening --workdir=runs/screening

Pairs of scikit-learn's digits beside each other make a hundred classes. Victims are trained on them. Each is screened
with several keys, which draw other images and other random triggers. Prints, and appends to results/screening.jsonl,
in how many of the screenings the attacker's class was among the 5, 10 and 20 likeliest; and what a search of twenty
classes says, for some victims one of all.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks.victims import BenchVictim, open_cell
from configs.bench.disarm import WIDE, digits
from launch import cli
from otbr_jax import plan as plans
from otbr_jax.data import sources
from otbr_jax.data.sources import DataConfig, Images
from otbr_jax.detectors import trigger_size
from otbr_jax.detectors.detector import conclude
from otbr_jax.metrics import rounded
from otbr_jax.report.rows import append_row
from otbr_jax.runs.provenance import ROOT, provenance
from otbr_jax.settings import change
from otbr_jax.studies.bench import Cell

WORKDIR = flags.DEFINE_string("workdir", "runs/screening", "Directory of the images and the victims.")
SEEDS = flags.DEFINE_integer("seeds", 5, "Screenings of each network.")
ATTACKS = flags.DEFINE_list("attacks", ["badnets", "blended", "lf", "trojan", "input_aware", "none"], "Which attacks.")
WHOLE = flags.DEFINE_list("whole", ["badnets", "none"], "Attacks whose victims are searched for all classes, too.")
RESULTS = ROOT / "results" / "screening.jsonl"
AMONG = (5, 10, 20)
CLASSES, SIDE = 100, 16
PAIRS = {"train": 12_000, "test": 2_000}


def pairs(images: Images, count: int, *, seed: int) -> dict[str, np.ndarray]:
    """Random pairs of 8 x 8 digits beside each other, twice as high: uint8 `[count, 16, 16, 1]`, labels 0 to 99."""
    chosen = np.random.default_rng(seed).integers(len(images.labels), size=(2, count))
    beside = np.concatenate([images.images[index] for index in chosen], axis=2)
    left, right = (images.labels[index] for index in chosen)
    return {"images": np.repeat(beside, 2, axis=1), "labels": 10 * left + right}


def write_pairs(path: pathlib.Path) -> None:
    """Writes the images of all pairs, whose digits are split as the default victim splits them."""
    dataset = sources.load(DataConfig(name="digits"), image_shape=(8, 8, 1), num_classes=10)
    parts = {name: pairs(getattr(dataset, name), count, seed=0) for name, count in PAIRS.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        **{f"{'x' if kind == 'images' else 'y'}_{name}": parts[name][kind] for name in parts for kind in parts[name]},
    )


def cell(attack: str, path: pathlib.Path) -> Cell:
    """A victim on pairs of digits."""
    config = digits(*WIDE, attack, 0).config
    model = dataclasses.replace(config.victim.model, num_classes=CLASSES, image_shape=(SIDE, SIDE, 1))
    data = DataConfig(name="npz", path=str(path))
    training = dataclasses.replace(config.victim.training, epochs=5)
    return Cell(change(config, model=model, data=data, training=training), recipe="fast")


def programs(victim: BenchVictim, among: int, *, last: str) -> Any:
    """`key -> values` of the steps up to that one."""
    config = change(victim.config, inversion=dataclasses.replace(victim.config.method.inversion, among=among))
    steps = trigger_size.plan(config)
    names = [step.name for step in steps]
    run = plans.programs(steps[: names.index(last) + 1], victim.setup)
    return lambda seed: jax.device_get(run({"victim": victim.variables}, key=jax.random.key(seed)))


def searched(victim: BenchVictim, among: int) -> Mapping[str, Any]:
    """The verdict of a search among so many, and the processor's seconds."""
    run, began = programs(victim, among, last="detected"), time.process_time()
    verdict = conclude(trigger_size.DETECTOR, victim.config, run(0), draw=False)
    return {
        "suspect": verdict.suspect,
        "score": verdict.score,
        "backdoored": verdict.backdoored,
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def main(arguments: Sequence[str]) -> None:
    """Screens and searches every victim."""
    del arguments
    origin, path = provenance(), pathlib.Path(WORKDIR.value) / "pairs.npz"
    write_pairs(path)
    for attack in ATTACKS.value:
        victim = open_cell(cell(attack, path.absolute()), WORKDIR.value)
        attacked, target = attack != "none", victim.config.victim.attack.target
        kept = []
        for among in AMONG:
            screening = programs(victim, among, last="screened")
            kept.append(sum(target in screening(seed)["screened"].classes for seed in range(SEEDS.value)))
        row = {
            "attack": attack,
            "classes": CLASSES,
            "acc": rounded(victim.metrics.acc),
            "asr": rounded(victim.metrics.asr) if attacked else None,
            "target": target if attacked else None,
            "screenings": SEEDS.value,
            "among": [*AMONG],
            "kept": kept if attacked else None,
            "of_all": searched(victim, 0) if attack in WHOLE.value else None,
            "of_some": searched(victim, AMONG[-1]),
        }
        print(json.dumps(row), flush=True)
        append_row(RESULTS, row | origin)


if __name__ == "__main__":
    cli.run(main)
