"""The default against newer attacks, on digits.

    python -m launch.bench --grid=configs/bench/attacks.py --workdir=runs/attacks --results=results/bench_attacks.jsonl

Five attacks beside the papers' eight, and BadNets all-to-all; two networks, seed 0.

At their published strengths FTrojan, BppAttack and Label-consistent were hardly learned here. The first two are
stronger, and Label-consistent's images harder. CTRL was not learned even at eight times its strength: digits of class 0
are recognised without it. Strengths were chosen roughly on the VGG of seed 0, in trials whose rows are not kept.
"""

import dataclasses

from configs.bench.otbr_plus import digits
from otbr_jax.settings import change
from otbr_jax.studies.bench import Bench, Cell
from otbr_jax.studies.repair_config import repaired_by

NETWORKS = ("vgg7_bn", 8), ("preact_resnet10", 16)
NEWER = ("label_consistent", "ftrojan", "bpp", "ctrl", "lira")
STRONGER = {
    "label_consistent": {"eps": 96.0},
    "ftrojan": {"magnitude": 240.0},
    "bpp": {"levels": 4},
    "ctrl": {"magnitude": 800.0, "train_magnitude": 400.0},
}
RATIOS = {"label_consistent": 0.08, "ctrl": 0.09}


def victim(network: str, width: int, attack: str) -> Cell:
    """A victim of one attack, strong enough to be learned on digits."""
    cell = digits(network, width, attack, 0, RATIOS.get(attack, 0.1))
    own = {attack: dataclasses.replace(getattr(cell.config.victim.attack, attack), **STRONGER.get(attack, {}))}
    config = change(cell.config, attack=dataclasses.replace(cell.config.victim.attack, **own))
    return dataclasses.replace(cell, config=config)


def to_all(cell: Cell) -> Cell:
    """The same attack, all-to-all: a triggered image of a class is predicted as the next class."""
    attack = dataclasses.replace(cell.config.victim.attack, labels="all_to_all")
    return Cell(change(cell.config, attack=attack), recipe=f"{cell.recipe}, all to all")


def victims() -> tuple[Cell, ...]:
    """All victims."""
    return tuple(
        cell
        for network in NETWORKS
        for cell in (
            *(victim(*network, attack) for attack in NEWER),
            to_all(victim(*network, "badnets")),
        )
    )


def get_grid() -> Bench:
    """Every victim, repaired by `disarm`."""
    return Bench("attacks", tuple(Cell(repaired_by("disarm", cell.config), cell.recipe) for cell in victims()))
