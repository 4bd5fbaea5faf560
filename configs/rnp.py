"""RNP on the default victim: prunes the neurons that recovering an unlearned network masks, with 65 clean images.

    python -m launch.repair --config=configs/rnp.py --workdir=runs/rnp

The defender has 5 % of the 1,297 training images, shifted by up to a pixel. As published, except for what so few images
need:

- batches of 32 instead of 128;
- unlearning with a learning rate of 0.001 instead of 0.01, for more epochs, which stops closer to the target accuracy;
- recovering with a learning rate of 0.02 instead of 0.2, which would mask half the network at once.

The threshold is chosen with the clean images alone; the published one is `--config.selection.thresholds="()"`. What it
does and when: docs/defences/rnp.md. The rates were chosen roughly on one victim, digits' VGG of seed 1.

Expected: one to two minutes on two CPU cores, most of them the training of the victim.
"""

import ml_collections

from configs import otbr
from otbr_jax.data.clean import CleanConfig
from otbr_jax.defenses.gating import THRESHOLDS, ThresholdConfig
from otbr_jax.defenses.rnp import RecoveringConfig, RNPConfig
from otbr_jax.settings import as_dict, from_dict
from otbr_jax.steps.unlearn import CleanUnlearningConfig
from otbr_jax.studies.repair_config import RepairConfig, repaired_by


def get_config() -> ml_collections.ConfigDict:
    """The settings; every field can be set on the command line as `--config.FIELD=VALUE`."""
    config = repaired_by(
        "rnp",
        from_dict(RepairConfig, otbr.get_config().to_dict()),
        clean=CleanConfig(fraction=0.05, crop_padding=1),
        rnp=RNPConfig(
            unlearning=CleanUnlearningConfig(max_epochs=500, batch_size=32, learning_rate=0.001, stop_accuracy=0.2),
            recovering=RecoveringConfig(epochs=20, batch_size=32, learning_rate=0.02),
        ),
        selection=ThresholdConfig(thresholds=THRESHOLDS),
    )
    return ml_collections.ConfigDict(as_dict(config))
