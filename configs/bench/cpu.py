"""The reduced bench: all eight attacks and clean networks on two CPU cores, in under three hours.

    python -m launch.prepare_data --name=cifar10      # and mnist
    python -m launch.bench --grid=configs/bench/cpu.py --workdir=runs/cpu

PreAct-ResNets of one block a stage, 20,000 training and 2,000 test images. CIFAR-10 for all attacks but Input-aware,
whose generator doubles the cost of a step: it runs on MNIST, beside BadNets. Each data set has a clean network of the
same training. WaNet's strength is 3 instead of the published 0.5: a trial at 2 stayed below 90 % ASR in these epochs.
OTBR runs as published: gamma 0.1, lambda 0.5.
"""

import dataclasses

from configs.recipes import DATA, EIGHT, model, training
from otbr_jax.attacks.registry import AttackConfig
from otbr_jax.attacks.wanet import WaNetConfig
from otbr_jax.studies.bench import Bench, Cell
from otbr_jax.studies.repair_config import repair_config

WIDTHS = {"cifar10": 16, "mnist": 8}
EPOCHS = {"cifar10": 12, "mnist": 8}
ON_MNIST = ("badnets", "input_aware")


def cell(data: str, attack: str) -> Cell:
    """One attack on one data set."""
    config = repair_config(
        model=model(data, "preact_resnet10", width=WIDTHS[data]),
        data=dataclasses.replace(DATA[data], train_images=20_000, test_images=2_000),
        attack=AttackConfig(name=attack, wanet=WaNetConfig(s=3.0)),
        training=training(data, "fast", epochs=EPOCHS[data]),
    )
    return Cell(config, recipe="fast")


def get_grid() -> Bench:
    """Every attack, and a clean network for each data set."""
    cifar = ["none", *(attack for attack in EIGHT if attack != "input_aware")]
    return Bench("cpu", (*(cell("cifar10", a) for a in cifar), *(cell("mnist", a) for a in ("none", *ON_MNIST))))
