"""Attackers who know the defence, on digits' VGG: by how much each part of it fails, beside BadNets.

    python -m launch.bench --grid=configs/bench/adaptive.py --workdir=runs/attacks

`adaptive_pictures` does not work on procedural pictures, on which the default searches. `adaptive_reach` has a decoy
for every class, so that none is cheaper than the median. `adaptive_channels` spreads over several triggers, each of
which works alone, against what prunes. Defended by the default, by the default with 5 % clean images, by OTBR as
published and by CLP.
"""

import dataclasses

from configs.bench.disarm import VGG
from configs.bench.otbr_plus import digits
from otbr_jax.data.clean import CleanConfig
from otbr_jax.studies.bench import Bench, Cell
from otbr_jax.studies.repair_config import repaired_by

ATTACKS = ("badnets", "adaptive_pictures", "adaptive_reach", "adaptive_channels")
VICTIMS = tuple(digits(*VGG, name, 1) for name in ATTACKS)


def ways(cell: Cell) -> tuple[Cell, ...]:
    """One victim, defended in each way."""
    few = CleanConfig(fraction=0.05)
    configs = (
        repaired_by("disarm", cell.config),
        repaired_by("disarm_clean", cell.config, clean=few),
        cell.config,
        repaired_by("clp", cell.config),
    )
    return tuple(dataclasses.replace(cell, config=config) for config in configs)


def get_grid() -> Bench:
    """Every victim, defended in every way."""
    return Bench("adaptive", tuple(defended for cell in VICTIMS for defended in ways(cell)))
