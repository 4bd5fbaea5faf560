"""OTBR+ on many small victims: detection, the choice of gamma and lambda, fine-tuning on inverted triggers.

    python -m launch.prepare_data --name=cifar10      # and mnist
    python -m launch.bench --grid=configs/bench/otbr_plus.py --workdir=runs/cpu --results=results/bench_otbr_plus.jsonl

Backdoored and clean networks: three data sets, three networks, all eight attacks. scikit-learn's digits: 16x16 images,
the fast recipe; two seeds, and a third one with 2 % poisoned. SSBA's strength is 0.25 there, since 0.1 was not learned;
SIG and WaNet were not learned at all on such small images. MNIST and CIFAR-10: the victims of `configs/bench/cpu.py`,
reloaded from its working directory. Thresholds were chosen roughly on seed 0 of the digits, except `least_agreement`.
"""

import dataclasses

from configs.bench import cpu
from configs.otbr_plus import plus
from configs.recipes import DATA, model, training
from otbr_jax.attacks.registry import AttackConfig
from otbr_jax.attacks.ssba import SSBAConfig
from otbr_jax.studies.bench import Bench, Cell
from otbr_jax.studies.repair_config import repair_config

ATTACKS = ("badnets", "blended", "lf", "ssba", "trojan", "input_aware")


def digits(network: str, width: int, attack: str, seed: int, ratio: float = 0.1) -> Cell:
    """A victim on scikit-learn's digits."""
    config = repair_config(
        model=model("digits", network, width=width),
        data=DATA["digits"],
        attack=AttackConfig(name=attack, poisoning_ratio=ratio, ssba=SSBAConfig(strength=0.25)),
        training=training("digits", "fast"),
        seed=seed,
    )
    return Cell(config, recipe="fast" if ratio == 0.1 else f"fast, {100 * ratio:g} % poisoned")


def victims() -> tuple[Cell, ...]:
    """All victims, each with OTBR as published."""
    vgg, resnet = ("vgg7_bn", 8), ("preact_resnet10", 16)
    return (
        *(digits(*vgg, attack, seed) for seed in (0, 1) for attack in ATTACKS),
        *(digits(*vgg, attack, 2, 0.02) for attack in ("badnets", "blended")),
        *(digits(*vgg, "none", seed) for seed in range(6)),
        *(digits(*resnet, attack, seed) for seed in (0, 1) for attack in ("badnets", "none")),
        *cpu.get_grid().cells,
    )


def get_grid() -> Bench:
    """Every victim, repaired by OTBR+."""
    return Bench("otbr_plus", tuple(dataclasses.replace(cell, config=plus(cell.config)) for cell in victims()))
