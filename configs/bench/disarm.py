"""The default on small victims: digits, attacked in six ways, and clean networks that its threshold is set on.

    python -m launch.bench --grid=configs/bench/disarm.py --workdir=runs/disarm --results=results/bench_disarm.jsonl

First the victims of the embedded default, BadNets with seeds 0 to 4; then clean networks of two kinds, of which those
with seeds from 10 on set the threshold and are not reported; and one victim of each attack that digits show. About a
minute each.
"""

import dataclasses

from configs import otbr
from configs.bench.otbr_plus import ATTACKS, digits
from otbr_jax.studies.bench import Cell, Grid
from otbr_jax.studies.repair_config import repair_config, repaired_by


def embedded(seed: int) -> Cell:
    """The victim of the embedded default, of another seed."""
    config = repair_config(otbr.get_config().to_dict())
    return Cell(dataclasses.replace(config, seed=seed), recipe="published")


def get_grid() -> Grid:
    """Every victim, repaired by `disarm`."""
    vgg, resnet = ("vgg7_bn", 8), ("preact_resnet10", 16)
    cells = (
        embedded(0),
        *(digits(*vgg, "none", seed) for seed in range(10, 16)),
        *(digits(*vgg, attack, 0) for attack in (*ATTACKS, "none")),
        *(embedded(seed) for seed in range(1, 5)),
        *(digits(*resnet, "none", seed) for seed in (*range(10, 16), 0)),
        *(digits(*vgg, "none", seed) for seed in range(16, 40)),
    )
    return Grid("disarm", tuple(Cell(repaired_by("disarm", cell.config), cell.recipe) for cell in cells))
