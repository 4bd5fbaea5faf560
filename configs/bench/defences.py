"""Eight defences on the same victims: digits' VGG of seed 1, five attacks and a clean network.

    python -m launch.bench --grid=configs/bench/defences.py --workdir=runs/disarm --results=results/bench_defences.jsonl

- OTBR as published (gamma 0.1, lambda 0.5); its row also holds the oracle, the best setting of its grid
- OTBR+, an earlier default
- CLP
- the default
- the default on all classes, whatever its verdict
- the default with clean images, 1 % and 5 % of the training set
- TSBD with 5 %

The victims are those of `configs/bench/disarm.py`, reloaded from its working directory.
"""

import dataclasses

from configs import tsbd
from configs.bench.otbr_plus import digits
from configs.otbr_plus import plus
from otbr_jax.data.clean import CleanConfig
from otbr_jax.detectors.trigger_size import DetectionConfig
from otbr_jax.settings import from_dict
from otbr_jax.studies.bench import Bench, Cell
from otbr_jax.studies.repair_config import RepairConfig, repaired_by

VICTIMS = tuple(
    digits("vgg7_bn", 8, attack, 1) for attack in ("badnets", "blended", "trojan", "lf", "input_aware", "none")
)
OWN = ("detection", "tsbd", "selection", "sweep")  # groups of configs/tsbd.py


def ways(cell: Cell) -> tuple[Cell, ...]:
    """One victim, repaired by each defence."""
    config = cell.config
    few = {share: CleanConfig(fraction=share) for share in (0.01, 0.05)}
    published = from_dict(RepairConfig, tsbd.get_config().to_dict())
    tuned = {name: getattr(published.method, name) for name in OWN}

    def way(config, variant: str = "") -> Cell:
        return dataclasses.replace(cell, config=config, variant=variant)

    return (
        way(repaired_by("disarm", config)),
        way(repaired_by("disarm", config, detection=DetectionConfig(unlearn="all")), "all classes"),
        way(repaired_by("disarm_clean", config, clean=few[0.01]), "1 % clean"),
        way(repaired_by("disarm_clean", config, clean=few[0.05]), "5 % clean"),
        way(repaired_by("clp", config)),
        way(config),
        way(plus(config), "plus"),
        way(repaired_by("tsbd", config, clean=published.clean, **tuned)),
    )


def get_grid() -> Bench:
    """Every victim, repaired by every defence."""
    return Bench("defences", tuple(defended for cell in VICTIMS for defended in ways(cell)))
