"""How active neurons of clean and of backdoored networks are while they are unlearned, on scikit-learn's digits.

    python -m launch.activeness --workdir=runs/activeness

Trains a network for each of `attacks` (`none`: without a backdoor) and `seeds`, unlearns it on 5 % of the training
images for 20 steps, and compares the gradient norms of its neurons. A network of your own, with the trigger that it is
known to answer; its scores say something beside those of others:

    python -m launch.activeness --workdir=DIR --config.model.checkpoint=victim.pt \\
        --config.attack.name=badnets --config.data.name=npz --config.data.path=FILE.npz

and with the `model.name`, `width`, `num_classes` and `image_shape` of that network.
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
