"""The leaderboard: every defence on the same networks, three runs each, without an oracle.

    python -m launch.bench --grid=configs/bench/leaderboard.py --workdir=runs/disarm

Victims are those of `configs/bench/disarm.py`, which are reloaded in its working directory: digits, two networks, six
backdoors and two clean networks. Every defence has its published settings, but for what its own `configs/NAME.py` says
about so few images. Thresholds are chosen with the clean images, or without data; the oracle's line stands beside.
After every repair, fine-tuning on 50 images, five of them poisoned, says whether the backdoor comes back.
"""  # fmt: skip

import dataclasses
import importlib

from otbr_jax.studies.comes_back import ComesBackConfig

from configs.bench.disarm import RESNET, VGG
from configs.bench.otbr_plus import digits
from otbr_jax.data.clean import CleanConfig
from otbr_jax.defenses.registry import defense
from otbr_jax.settings import declarations
from otbr_jax.studies.bench import Cell, Grid
from otbr_jax.studies.repair_config import repair_config, repaired_by

BACKDOORED = (
    *(digits(*VGG, attack, 1) for attack in ("badnets", "blended", "trojan", "lf")),
    *(digits(*RESNET, attack, 0) for attack in ("badnets", "blended")),
)
CLEAN = (digits(*VGG, "none", 1), digits(*RESNET, "none", 0))
RUNS = range(3)

NO_DATA = ("disarm", "otbr", "clp", "bcu")
CLEAN_IMAGES = ("disarm_clean", "ft", "ft_sam", "fine_pruning", "nad", "anp", "rnp", "i_bau", "sau", "tsbd")
COMES_BACK = ComesBackConfig(images=50, poisoned=5)


def defended(cell: Cell, name: str, run: int = 0) -> Cell:
    """The same victim by that defence, as `configs/NAME.py` sets it for digits, or with its published settings."""
    method, own = defense(name), {}
    if name in CLEAN_IMAGES[1:] + NO_DATA[2:]:
        chosen = repair_config(importlib.import_module(f"configs.{name}").get_config().to_dict())
        own = {group: getattr(chosen, group) for group in declarations(method.Config)}
    clean = {} if method.data == "none" else {"clean": CleanConfig(fraction=0.05)}
    config = repaired_by(name, cell.config, **own, **clean, repetition=run, comes_back=COMES_BACK)
    return dataclasses.replace(cell, config=config)


def get_grid() -> Grid:
    """Run by run, every victim by every defence."""
    victims, names = (*BACKDOORED, *CLEAN), (*NO_DATA, *CLEAN_IMAGES)
    return Grid("leaderboard", tuple(defended(cell, name, run) for run in RUNS for cell in victims for name in names))
