"""Adaptive attacks on digits' VGG: attackers who know the defence, beside BadNets.

    python -m launch.bench --grid=configs/bench/adaptive.py --workdir=runs/attacks

`adaptive_pictures` does not work on procedural images, on which the default inverts triggers. `adaptive_reach` plants a
decoy trigger for every class, so that no minimal trigger is smaller than the median. `adaptive_channels` plants several
triggers, each of which works alone, against pruning. Defences: the default, the default with 5 % clean images, OTBR as
published, CLP.
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
    """One victim, repaired by each defence."""
    few = CleanConfig(fraction=0.05)
    configs = (
        repaired_by("disarm", cell.config),
        repaired_by("disarm_clean", cell.config, clean=few),
        cell.config,
        repaired_by("clp", cell.config),
    )
    return tuple(dataclasses.replace(cell, config=config) for config in configs)


def get_grid() -> Bench:
    """Every victim, repaired by every defence."""
    return Bench("adaptive", tuple(defended for cell in VICTIMS for defended in ways(cell)))
