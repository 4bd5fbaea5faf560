"""OTBR on the embedded default: a BadNets victim trained on scikit-learn's digits, repaired without data.

    python -m launch.repair --config=configs/otbr.py --workdir=runs/otbr

TODO band.
"""

import dataclasses

import ml_collections

from otbr_jax.experiments.config import RepairConfig
from otbr_jax.models.registry import ModelConfig


def get_config() -> ml_collections.ConfigDict:
    """The settings; every field can be set on the command line as `--config.FIELD=VALUE`."""
    config = RepairConfig(
        model=ModelConfig(name="preact_resnet18", width=16, image_shape=(16, 16, 1), num_classes=10),
    )
    return ml_collections.ConfigDict(dataclasses.asdict(config))
