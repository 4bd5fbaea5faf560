"""FT-SAM on the default victim: a BadNets victim trained on scikit-learn's digits, and 65 clean images.

    python -m launch.repair --config=configs/ft_sam.py --workdir=runs/ft_sam

As published, except for what so few images need: batches of 32 instead of 256, images shifted by up to a pixel. What it
does and when: docs/defences/ft_sam.md. With images of your own: `--config.clean.name=folder`, as in configs/tsbd.py.

Expected: ASR falls from 100 % to 88 %, ACC from 99.4 % to 97.8 %. One to two minutes on two CPU cores, most of it the
training of the victim.
"""

import ml_collections

from configs import otbr
from configs.ft import CLEAN, FEW
from otbr_jax.settings import as_dict, from_dict
from otbr_jax.studies.repair_config import RepairConfig, repaired_by


def get_config() -> ml_collections.ConfigDict:
    """The settings; every field can be set on the command line as `--config.FIELD=VALUE`."""
    config = repaired_by("ft_sam", from_dict(RepairConfig, otbr.get_config().to_dict()), clean=CLEAN, finetuning=FEW)
    return ml_collections.ConfigDict(as_dict(config))
