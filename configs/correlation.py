"""Correlation of neuron weight changes under random, clean and poison unlearning, on scikit-learn's digits.

    python -m launch.correlation --workdir=runs/correlation

Trains a victim for each of `attacks`, unlearns it in three ways and correlates the neuron weight changes.
`--config=configs/correlation.py:cifar10` does so on victims of the reduced bench. For a network of your own, the
trigger has to be known:

    python -m launch.correlation --workdir=DIR --config.model.checkpoint=victim.pt "--config.attacks=()" \\
        --config.attack.name=badnets --config.data.name=npz --config.data.path=FILE.npz

Add the `model.name`, `width`, `num_classes` and `image_shape` of that network.

Expected: docs/results/otbr.md (rows: results/correlation.jsonl), in about nine minutes on two CPU cores.
"""

import dataclasses

import ml_collections

from configs import recipes
from otbr_jax.errors import InputError
from otbr_jax.models.registry import ModelConfig
from otbr_jax.studies.correlation import CorrelationConfig
from otbr_jax.victims.training import TrainingConfig

ATTACKS = ("badnets", "blended", "lf", "trojan")


def get_config(data: str = "digits") -> ml_collections.ConfigDict:
    """The settings on `digits`, or on `cifar10` with the reduced bench's network and training.

    Every field can be set on the command line as `--config.FIELD=VALUE`.
    """
    if data not in ("digits", "cifar10"):
        raise InputError(f"--config: expected FILE.py:digits or FILE.py:cifar10, found {data!r}")
    if data == "digits":
        model, training = ModelConfig("preact_resnet10", 24, image_shape=(16, 16, 1)), TrainingConfig(epochs=20)
        config = CorrelationConfig(model=model, training=training, attacks=ATTACKS)
    else:
        config = CorrelationConfig(
            model=recipes.model("cifar10", "preact_resnet10", width=16),
            data=dataclasses.replace(recipes.DATA["cifar10"], train_images=20_000, test_images=2_000),
            training=recipes.training("cifar10", "fast", epochs=12),
            attacks=ATTACKS,
        )
    return ml_collections.ConfigDict(dataclasses.asdict(config))
