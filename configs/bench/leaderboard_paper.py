"""The leaderboard on the papers' bench: PreAct-ResNet18 in full width, three data sets, every defence as published.

    python -m launch.prepare_data --name=cifar10      # and gtsrb, tiny_imagenet
    python -m launch.bench --grid=configs/bench/leaderboard_paper.py --workdir=runs/paper

Meant for one GPU or more; `launch.bench --only=cifar10` runs a part of it. Victims are those of
`configs/bench/paper.py`, reloaded from its working directory. Clean images are 5 % of the training set, augmented as in
training. Run by run, CIFAR-10 first.
"""

import dataclasses

from configs.bench import paper
from configs.bench.leaderboard import FEW_IMAGES, PUBLISHED, RUNS
from otbr_jax.data.clean import CleanConfig
from otbr_jax.defenses.clp import AgreementConfig
from otbr_jax.defenses.gating import THRESHOLDS, ThresholdConfig
from otbr_jax.defenses.registry import defense
from otbr_jax.studies.bench import Bench, Cell
from otbr_jax.studies.repair_config import repaired_by
from otbr_jax.victims.relearning import RelearningConfig

U = AgreementConfig(u=(4.5, 4.0, 3.5, 3.0, 2.5, 2.0))
CHOSEN = {name: {"selection": ThresholdConfig(thresholds=THRESHOLDS)} for name in ("anp", "rnp")}
"""Their code picks thresholds with the test set; here the clean images pick them."""
RELEARNING = RelearningConfig(images=500, poisoned=50, epochs=5, batch_size=50)


def defended(cell: Cell, name: str, run: int, variant: str = "", **changes) -> Cell:
    """The same victim repaired by that defence, with its published settings."""
    training = cell.config.victim.training
    few = CleanConfig(fraction=0.05, crop_padding=training.crop_padding, flip=training.flip)
    clean = {} if defense(name).data == "none" else {"clean": few}
    config = repaired_by(name, cell.config, **clean | changes, repetition=run, relearning=RELEARNING)
    return dataclasses.replace(cell, config=config, variant=variant)


def ways(cell: Cell, run: int) -> tuple[Cell, ...]:
    """One victim, repaired by every defence."""
    return (
        *(defended(cell, name, run, **CHOSEN.get(name, {})) for name in (*PUBLISHED, *FEW_IMAGES)),
        defended(cell, "clp", run, "u chosen", selection=U),
    )


def get_grid() -> Bench:
    """Run by run, every victim of the papers' bench repaired by every defence."""
    cells = paper.get_grid().cells
    return Bench("leaderboard_paper", tuple(each for run in RUNS for cell in cells for each in ways(cell, run)))
