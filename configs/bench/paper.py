"""The papers' bench: PreAct-ResNet18 in full width, eight attacks and a clean network, three data sets, OTBR.

    python -m launch.prepare_data --name=cifar10      # and gtsrb, tiny_imagenet
    python -m launch.bench --grid=configs/bench/paper.py --workdir=runs/paper

Meant for one GPU or more. Victims are trained with the fast recipe; `configs/bench/recipes.py` compares it with the
published one. OTBR runs as published: gamma 0.1, lambda 0.5, 20 steps. CIFAR-10 comes first.
"""

from configs.recipes import DATA, EIGHT, model, training
from otbr_jax.attacks.registry import AttackConfig
from otbr_jax.studies.bench import Bench, Cell
from otbr_jax.studies.repair_config import repair_config


def get_grid() -> Bench:
    """Data sets x attacks, one seed."""
    cells = [
        Cell(
            repair_config(
                model=model(data), data=DATA[data], attack=AttackConfig(name=attack), training=training(data, "fast")
            ),
            recipe="fast",
        )
        for data in ("cifar10", "gtsrb", "tiny_imagenet")
        for attack in ("none", *EIGHT)
    ]
    return Bench("paper", tuple(cells))
