"""The default on victims that two CPU cores train: digits and MNIST, seven attacks, and clean networks.

    python -m launch.prepare_data --name=mnist
    python -m launch.bench --grid=configs/bench/disarm.py --workdir=runs/disarm --results=results/bench_disarm.jsonl

Clean networks of four architectures with seeds from 10 on calibrate the threshold; they are not reported. The victims:

- the default victim with seeds 0 to 4
- digits: each attack that can be learned there, on two networks, with 10 % and 2 % poisoned, all-to-one and all-to-all
- MNIST (6,000 training images), where SIG is learned too
- clean networks with seeds below 10

A minute or two each.
"""

import dataclasses

from configs import otbr
from configs.bench import cpu
from configs.bench.otbr_plus import ATTACKS, digits
from otbr_jax.settings import change, from_dict
from otbr_jax.studies.bench import Bench, Cell
from otbr_jax.studies.repair_config import RepairConfig, repaired_by

VGG, WIDE, RESNET = ("vgg7_bn", 8), ("vgg7_bn", 16), ("preact_resnet10", 16)
CALIBRATION = range(10, 42)


def default_victim(seed: int) -> Cell:
    """The default victim of another seed."""
    config = from_dict(RepairConfig, otbr.get_config().to_dict())
    return Cell(change(config, seed=seed), recipe="published")


def to_all(cell: Cell) -> Cell:
    """The same attack, all-to-all: a triggered image of a class is predicted as the next class."""
    attack = dataclasses.replace(cell.config.victim.attack, labels="all_to_all")
    return Cell(change(cell.config, attack=attack), recipe=f"{cell.recipe}, all to all")


def mnist(attack: str, seed: int) -> Cell:
    """A victim on 6,000 images of MNIST; SIG poisons six tenths of its class, whose other images have to stay clean."""
    config = cpu.cell("mnist", attack).config
    ratio = 0.06 if attack == "sig" else 0.1
    return Cell(
        change(
            config,
            seed=seed,
            data=dataclasses.replace(config.victim.data, train_images=6_000),
            attack=dataclasses.replace(config.victim.attack, poisoning_ratio=ratio),
        ),
        recipe="fast, 6,000 images",
    )


def victims() -> tuple[Cell, ...]:
    """All victims."""
    return (
        default_victim(0),
        *(digits(*VGG, "none", seed) for seed in CALIBRATION),
        *(digits(*RESNET, "none", seed) for seed in CALIBRATION[:12]),
        *(digits(*WIDE, "none", seed) for seed in CALIBRATION[:10]),
        *(mnist("none", seed) for seed in CALIBRATION[:6]),
        *(digits(*VGG, attack, seed) for seed in (0, 1) for attack in ATTACKS),
        *(digits(*VGG, attack, 2, 0.02) for attack in ("badnets", "blended")),
        *(digits(*VGG, "none", seed) for seed in range(4)),
        *(mnist(attack, 0) for attack in (*ATTACKS, "sig", "none")),
        *(digits(*RESNET, attack, 0) for attack in ATTACKS),
        *(digits(*RESNET, "none", seed) for seed in range(4)),
        *(to_all(cell) for cell in (digits(*VGG, "badnets", 0), digits(*RESNET, "badnets", 0), mnist("badnets", 0))),
        *(default_victim(seed) for seed in range(1, 5)),
        *(digits(*WIDE, "none", seed) for seed in range(2)),
        *(mnist("none", seed) for seed in range(1, 3)),
    )


def get_grid() -> Bench:
    """Every victim, repaired by `disarm`."""
    return Bench("disarm", tuple(Cell(repaired_by("disarm", cell.config), cell.recipe) for cell in victims()))
