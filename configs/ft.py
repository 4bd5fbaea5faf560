"""Fine-tuning on the default victim: a BadNets victim trained on scikit-learn's digits, and 65 clean images.

    python -m launch.repair --config=configs/ft.py --workdir=runs/ft

As published, except for what so few images need: batches of 32 instead of 256, images shifted by up to a pixel. What it
does and when: docs/defences/ft.md. With images of your own: `--config.clean.name=folder`, as in configs/tsbd.py.

Expected: ACC 97.8 %, ASR 100 % as before: fine-tuning alone leaves this backdoor. One to two minutes on two CPU
cores, most of it the training of the victim.
"""

import dataclasses

import ml_collections

from configs import otbr
from otbr_jax.data.clean import CleanConfig
from otbr_jax.defenses.ft import PUBLISHED
from otbr_jax.settings import as_dict, from_dict
from otbr_jax.studies.repair_config import RepairConfig, repaired_by

CLEAN = CleanConfig(fraction=0.05, crop_padding=1)
FEW = dataclasses.replace(PUBLISHED, batch_size=32)


def get_config() -> ml_collections.ConfigDict:
    """The settings; every field can be set on the command line as `--config.FIELD=VALUE`."""
    config = repaired_by("ft", from_dict(RepairConfig, otbr.get_config().to_dict()), clean=CLEAN, finetuning=FEW)
    return ml_collections.ConfigDict(as_dict(config))
