"""Fine-pruning on the default victim: a BadNets victim trained on scikit-learn's digits, and 65 clean images.

    python -m launch.repair --config=configs/fine_pruning.py --workdir=runs/fine_pruning

As published, except for what so few images need: batches of 32 instead of 256, images shifted by up to a pixel. The
clean images choose how many channels are pruned. The report also shows five fixed shares, each fine-tuned. What it does
and when: docs/defences/fine_pruning.md. With images of your own: `--config.clean.name=folder`, as in configs/tsbd.py.

Expected: 172 of 192 channels are pruned, ASR falls from 100 % to 54 %, ACC from 99.4 % to 98.6 %. Two minutes on two
CPU cores, most of it the training of the victim and the fixed shares.
"""

import ml_collections

from configs import otbr
from configs.ft import CLEAN, FEW
from otbr_jax.defenses.fine_pruning import SweepConfig
from otbr_jax.settings import as_dict, from_dict
from otbr_jax.studies.repair_config import RepairConfig, repaired_by

SWEEP = SweepConfig(share=(0.0, 0.5, 0.8, 0.9, 0.95))


def get_config() -> ml_collections.ConfigDict:
    """The settings; every field can be set on the command line as `--config.FIELD=VALUE`."""
    victim = from_dict(RepairConfig, otbr.get_config().to_dict())
    config = repaired_by("fine_pruning", victim, clean=CLEAN, finetuning=FEW, sweep=SWEEP)
    return ml_collections.ConfigDict(as_dict(config))
