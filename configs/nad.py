"""NAD on the default victim: a BadNets victim trained on scikit-learn's digits, and 65 clean images.

    python -m launch.repair --config=configs/nad.py --workdir=runs/nad

As published, except for what so few images need: batches of 32 instead of 256, images shifted by up to a pixel. What it
does and when: docs/defences/nad.md. With images of your own: `--config.clean.name=folder`, as in configs/tsbd.py.

Expected: ASR falls from 100 % to 2 %, ACC from 99.4 % to 93.6 %. One to two minutes on two CPU cores, most of it the
training of the victim.
"""

import dataclasses

import ml_collections

from configs import otbr
from configs.ft import CLEAN
from otbr_jax.defenses.nad import NADConfig
from otbr_jax.settings import as_dict, from_dict
from otbr_jax.studies.repair_config import RepairConfig, repaired_by


def few(config: NADConfig) -> NADConfig:
    """The same in batches of 32."""
    stages = {name: dataclasses.replace(getattr(config, name), batch_size=32) for name in ("teacher", "finetuning")}
    return dataclasses.replace(config, **stages)


def get_config() -> ml_collections.ConfigDict:
    """The settings; every field can be set on the command line as `--config.FIELD=VALUE`."""
    config = repaired_by("nad", from_dict(RepairConfig, otbr.get_config().to_dict()), clean=CLEAN, nad=few(NADConfig()))
    return ml_collections.ConfigDict(as_dict(config))
