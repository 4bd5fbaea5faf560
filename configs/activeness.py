"""Activeness of neurons in clean and in backdoored networks during unlearning, on scikit-learn's digits.

    python -m launch.activeness --workdir=runs/activeness

Trains a network for each of `attacks` (`none`: without a backdoor) and `seeds`, unlearns it on 5 % of the training
images for 20 steps, and compares the gradient norms of its neurons. For a network of your own, the trigger has to be
known. Its scores only mean something beside those of other networks:

    python -m launch.activeness --workdir=DIR --config.model.checkpoint=victim.pt \\
        --config.attack.name=badnets --config.data.name=npz --config.data.path=FILE.npz

Add the `model.name`, `width`, `num_classes` and `image_shape` of that network.
"""

import dataclasses

import ml_collections

from otbr_jax.models.registry import ModelConfig
from otbr_jax.steps.unlearn import UnlearningConfig
from otbr_jax.studies.activeness import ActivenessConfig
from otbr_jax.victims.training import TrainingConfig


def get_config() -> ml_collections.ConfigDict:
    """The settings; every field can be set on the command line as `--config.FIELD=VALUE`."""
    config = ActivenessConfig(
        model=ModelConfig("preact_resnet10", 24, image_shape=(16, 16, 1)),
        training=TrainingConfig(epochs=20),
        attacks=("none", "badnets", "blended", "lf"),
        unlearning=UnlearningConfig(batch_size=64),
    )
    return ml_collections.ConfigDict(dataclasses.asdict(config))
