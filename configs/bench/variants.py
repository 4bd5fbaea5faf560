"""Variants of OTBR's parts, each against the published one: what the grid gamma x lambda holds at best.

    python -m launch.bench --grid=configs/bench/variants.py --workdir=runs/cpu --results=results/bench_variants.jsonl

Narrow VGGs on scikit-learn's digits, the first seed of `configs/bench/otbr_plus.py`. Each variant is one setting of
`configs/otbr.py`'s.
"""

import dataclasses

from configs.bench import otbr_plus
from otbr_jax.defenses.otbr import OTBRConfig
from otbr_jax.experiments.bench import Cell, Grid
from otbr_jax.experiments.repair_config import SweepConfig
from otbr_jax.fusion import FusionConfig
from otbr_jax.unlearning import UnlearningConfig

VARIANTS = {
    "published": OTBRConfig(),
    "100 steps of unlearning": OTBRConfig(unlearning=UnlearningConfig(steps=100)),
    "NWC normalised layer by layer": OTBRConfig(ranking="layer"),
    "half of the weights": OTBRConfig(m=0.5),
    "only layers with pruned neurons": OTBRConfig(fusion=FusionConfig(layers="pruned")),
    "norms kept": OTBRConfig(fusion=FusionConfig(keep_norms=True)),
    "one plan per addition": OTBRConfig(fusion=FusionConfig(tied=True)),
}
SWEEP = SweepConfig(gamma=(0.02, 0.05, 0.1, 0.15, 0.2, 0.3), lam=(0.5, 0.75, 1.0))


def get_grid() -> Grid:
    """Every variant on every victim; the network without additions has no use for the last."""
    victims = [
        cell
        for cell in otbr_plus.victims()
        if cell.config.data.name == "digits" and cell.config.seed == 0 and cell.config.attack.name != "none"
    ]
    return Grid(
        "variants",
        tuple(
            Cell(dataclasses.replace(victim.config, otbr=config, sweep=SWEEP), recipe=name)
            for name, config in VARIANTS.items()
            for victim in victims
            if victim.config.model.name != "vgg7_bn" or not config.fusion.tied
        ),
    )
