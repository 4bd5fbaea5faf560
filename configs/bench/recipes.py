"""The published and the fast recipe side by side, on the digits that ship with scikit-learn: minutes on two CPU cores.

    python -m launch.bench --grid=configs/bench/recipes.py --workdir=runs/recipes --results=results/recipes.jsonl

100 epochs at a learning rate of 0.01 against 15 at 0.1 after a warm-up; everything else is the same.
"""

from configs.recipes import DATA, EPOCHS, model, training
from otbr_jax.attacks.registry import AttackConfig
from otbr_jax.studies.bench import Bench, Cell
from otbr_jax.studies.repair_config import repair_config


def get_grid() -> Bench:
    """Both recipes for a clean network and two attacks."""
    cells = [
        Cell(
            repair_config(
                model=model("digits", "preact_resnet10", width=24),
                data=DATA["digits"],
                attack=AttackConfig(name=attack),
                training=training("digits", recipe),
            ),
            recipe=recipe,
        )
        for attack in ("none", "badnets", "blended")
        for recipe in EPOCHS
    ]
    return Bench("recipes", tuple(cells))
