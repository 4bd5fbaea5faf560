"""OTBR on the default victim: a BadNets victim trained on scikit-learn's digits, repaired without data.

    python -m launch.repair --config=configs/otbr.py --workdir=runs/otbr

The method is as published, except for lambda = 0.75 (published: 0.5). gamma and lambda were chosen roughly during
development, on other victims; a run uses no image to choose them.

Expected: docs/results/otbr.md (rows: results/digits.jsonl), in one to two minutes on two CPU cores.

A network of your own, with the flags of configs/own_network.py:

    python -m launch.repair --config=configs/otbr.py --workdir=DIR --config.model.checkpoint=victim.pt
"""

import ml_collections

from otbr_jax.contrib.otbr_plus import SweepConfig
from otbr_jax.defenses.otbr import OTBRConfig
from otbr_jax.models.registry import ModelConfig
from otbr_jax.settings import as_dict
from otbr_jax.steps.fuse import FusionConfig
from otbr_jax.studies.repair_config import repair_config
from otbr_jax.victims.training import TrainingConfig


def get_config() -> ml_collections.ConfigDict:
    """The settings; every field can be set on the command line as `--config.FIELD=VALUE`."""
    config = repair_config(
        model=ModelConfig(name="preact_resnet10", width=24, image_shape=(16, 16, 1), num_classes=10),
        training=TrainingConfig(epochs=20),
        otbr=OTBRConfig(gamma=0.15, fusion=FusionConfig(lam=0.75)),
        sweep=SweepConfig(screening_images=100),
    )
    return ml_collections.ConfigDict(as_dict(config))
