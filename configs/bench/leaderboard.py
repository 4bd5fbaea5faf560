"""The leaderboard: every defence on the same networks, three runs each, without an oracle.

    python -m launch.bench --grid=configs/bench/leaderboard.py --workdir=runs/disarm

Victims are those of `configs/bench/disarm.py`, reloaded from its working directory: digits' VGG, four backdoors and a
clean network. Every defence has its published settings, except for what its own `configs/NAME.py` changes for so few
images. Thresholds are chosen with the clean images, or without data; the oracle is a separate line. After every repair,
the network is fine-tuned on 50 images, five of them poisoned: does it relearn the backdoor?
"""  # fmt: skip

import dataclasses
import importlib

from configs.bench.disarm import VGG
from configs.bench.otbr_plus import digits
from otbr_jax.contrib.pruning_detection import PruningDetectionConfig
from otbr_jax.data.clean import CleanConfig
from otbr_jax.defenses.clp import AgreementConfig
from otbr_jax.defenses.registry import defense
from otbr_jax.settings import declarations, from_dict
from otbr_jax.studies.bench import Bench, Cell
from otbr_jax.studies.repair_config import RepairConfig, repaired_by
from otbr_jax.victims.relearning import RelearningConfig

BACKDOORED = tuple(digits(*VGG, attack, 1) for attack in ("badnets", "blended", "trojan", "input_aware"))
CLEAN = (digits(*VGG, "none", 1),)
RUNS = range(3)

PUBLISHED = ("disarm", "otbr", "clp", "disarm_clean")
"""With their published settings."""
FEW_IMAGES = ("ft", "ft_sam", "fine_pruning", "nad", "anp", "rnp", "i_bau", "sau", "tsbd", "bcu")
"""As `configs/NAME.py` sets them for so few images of digits."""
U = AgreementConfig(u=(4.0, 3.5, 3.0, 2.5, 2.0, 1.75, 1.5))
RELEARNING = RelearningConfig(images=50, poisoned=5, epochs=5)


def defended(cell: Cell, name: str, run: int = 0, variant: str = "", **changes) -> Cell:
    """The same victim repaired by that defence, with 5 % of the training images if it takes any."""
    method, own = defense(name), {}
    if name in FEW_IMAGES:
        chosen = from_dict(RepairConfig, importlib.import_module(f"configs.{name}").get_config().to_dict())
        own = {group: getattr(chosen.method, group) for group in declarations(method.Config)}
    clean = {} if method.data == "none" else {"clean": CleanConfig(fraction=0.05)}
    config = repaired_by(name, cell.config, **own | clean | changes, repetition=run, relearning=RELEARNING)
    return dataclasses.replace(cell, config=config, variant=variant)


def ways(cell: Cell, run: int) -> tuple[Cell, ...]:
    """One victim, repaired by every defence."""
    return (
        *(defended(cell, name, run) for name in (*PUBLISHED, *FEW_IMAGES)),
        defended(cell, "clp", run, "u chosen", selection=U),
        # Without detection first, as published and as the others do.
        defended(cell, "tsbd", run, "always", detection=PruningDetectionConfig()),
    )


def get_grid() -> Bench:
    """Run by run, every victim repaired by every defence."""
    return Bench(
        "leaderboard", tuple(each for run in RUNS for cell in (*BACKDOORED, *CLEAN) for each in ways(cell, run))
    )
