r"""The default on CIFAR-10: two networks, all attacks, 10 % and 2 % poisoned, all-to-all, and clean networks.

    python -m launch.prepare_data --name=cifar10
    python -m launch.bench --grid=configs/bench/disarm_cifar.py --workdir=runs/disarm \
        --results=results/bench_disarm_cifar.jsonl

20,000 training images, eight epochs of the fast recipe, 2,000 test images. WaNet's strength is 3
(`configs/bench/cpu.py` says why). SIG poisons six tenths of its class, whose other images have to stay clean. Three to
ten minutes a victim on two CPU cores. The threshold is that of `configs/bench/disarm.py`, which no network on CIFAR-10
helped to calibrate.
"""

import dataclasses

from configs.bench import cpu
from configs.bench.disarm import to_all
from otbr_jax.models.registry import ModelConfig
from otbr_jax.settings import change
from otbr_jax.studies.bench import Bench, Cell
from otbr_jax.studies.repair_config import repaired_by

VGG, RESNET = ("vgg7_bn", 16), ("preact_resnet10", 16)


def cifar(network: tuple[str, int], attack: str, ratio: float = 0.1) -> Cell:
    """A victim on CIFAR-10."""
    config = cpu.cell("cifar10", attack).config
    model = ModelConfig(network[0], width=network[1], image_shape=(32, 32, 3), num_classes=10)
    return Cell(
        change(
            config,
            model=model,
            attack=dataclasses.replace(config.victim.attack, poisoning_ratio=ratio),
            training=dataclasses.replace(config.victim.training, epochs=8),
        ),
        recipe="fast, 8 epochs" if ratio != 0.02 else "fast, 8 epochs, 2 % poisoned",
    )


def victims() -> tuple[Cell, ...]:
    """All victims, the most telling first."""
    return (
        cifar(VGG, "badnets"),
        cifar(VGG, "none"),
        cifar(RESNET, "blended"),
        cifar(VGG, "wanet"),
        cifar(RESNET, "none"),
        cifar(VGG, "sig", 0.06),
        cifar(RESNET, "trojan"),
        cifar(VGG, "lf"),
        cifar(RESNET, "badnets", 0.02),
        cifar(VGG, "blended"),
        to_all(cifar(VGG, "badnets")),
        cifar(RESNET, "wanet"),
        cifar(VGG, "ssba"),
        cifar(RESNET, "sig", 0.06),
        cifar(VGG, "trojan"),
        cifar(RESNET, "lf"),
        cifar(VGG, "blended", 0.02),
        cifar(RESNET, "badnets"),
        cifar(VGG, "input_aware"),
    )


def get_grid() -> Bench:
    """Every victim, repaired by `disarm`."""
    return Bench("disarm", tuple(Cell(repaired_by("disarm", cell.config), cell.recipe) for cell in victims()))
