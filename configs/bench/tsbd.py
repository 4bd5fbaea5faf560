"""TSBD on three data sets: 5 % clean images, n and m chosen with them, and every candidate measured for the regret.

    python -m launch.bench --grid=configs/bench/tsbd.py --workdir=runs/cpu --results=results/bench_tsbd.jsonl

scikit-learn's digits with the settings of `configs/tsbd.py`, and more attacks and seeds. MNIST and CIFAR-10 with the
victims of `configs/bench/cpu.py`, reloaded from its working directory. They are fine-tuned as published: 20 epochs of
batches of 256 at a learning rate of 0.01, with the training's crops and flips. They are unlearned for up to 300 epochs,
which MNIST needs. CIFAR-10 has fewer candidates: each costs two fine-tunings, one to choose and one to know the regret.
"""

import dataclasses

from configs.bench import cpu
from configs.tsbd import get_config
from otbr_jax.attacks.registry import AttackConfig
from otbr_jax.data.clean import CleanConfig
from otbr_jax.defenses.tsbd import SweepConfig, TSBDConfig
from otbr_jax.settings import change, from_dict
from otbr_jax.steps.select import SelectionConfig
from otbr_jax.steps.unlearn import CleanUnlearningConfig
from otbr_jax.studies.bench import Bench, Cell
from otbr_jax.studies.repair_config import RepairConfig, repaired_by

N = {"mnist": (0.1, 0.2, 0.3), "cifar10": (0.1, 0.3)}
M = (0.7, 1.0)
DIGITS = (*(("badnets", seed) for seed in range(4)), ("none", 0), ("none", 1), ("blended", 0), ("lf", 0))
FIRST = ("none", "badnets", "blended", "trojan")  # of CIFAR-10, where a cell takes longest


def digits(attack: str, seed: int) -> Cell:
    """The default run, with another attack or seed."""
    config = from_dict(RepairConfig, get_config().to_dict() | {"seed": seed})
    return Cell(change(config, attack=AttackConfig(name=attack)), recipe="default")


def with_tsbd(cell: Cell) -> Cell:
    """The same victim, repaired with clean images."""
    training, n = cell.config.victim.training, N[cell.config.victim.data.name]
    config = repaired_by(
        "tsbd",
        cell.config,
        clean=CleanConfig(crop_padding=training.crop_padding, flip=training.flip),
        tsbd=TSBDConfig(CleanUnlearningConfig(max_epochs=300)),
        selection=SelectionConfig(n=n, m=M),
        sweep=SweepConfig(n=n, m=M),
    )
    return dataclasses.replace(cell, config=config)


def get_grid() -> Bench:
    """Digits first, CIFAR-10 last."""
    cells = [with_tsbd(cell) for cell in cpu.get_grid().cells]

    def place(cell: Cell) -> tuple[bool, int]:
        attack = cell.config.victim.attack.name
        return cell.config.victim.data.name != "mnist", FIRST.index(attack) if attack in FIRST else len(FIRST)

    return Bench("tsbd", (*(digits(*each) for each in DIGITS), *sorted(cells, key=place)))
