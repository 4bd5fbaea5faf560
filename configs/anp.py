"""ANP on the default victim: prunes the neurons most sensitive to adversarial perturbation, with 65 clean images.

    python -m launch.repair --config=configs/anp.py --workdir=runs/anp

The defender has 5 % of the 1,297 training images, shifted by up to a pixel. As published, except for 500 steps on
batches of 32 instead of 2,000 on batches of 128, and for the threshold, which is chosen with the clean images alone.
The published one is `--config.selection.thresholds="()"`. What it does and when: docs/defences/anp.md.

Expected: two minutes on two CPU cores, half of them the training of the victim. Learning the masks takes four times as
long with the published 2,000 steps.
"""

import ml_collections

from configs import otbr
from otbr_jax.data.clean import CleanConfig
from otbr_jax.defenses.anp import AdversarialConfig, ANPConfig
from otbr_jax.defenses.gating import THRESHOLDS, ThresholdConfig
from otbr_jax.settings import as_dict, from_dict
from otbr_jax.studies.repair_config import RepairConfig, repaired_by


def get_config() -> ml_collections.ConfigDict:
    """The settings; every field can be set on the command line as `--config.FIELD=VALUE`."""
    config = repaired_by(
        "anp",
        from_dict(RepairConfig, otbr.get_config().to_dict()),
        clean=CleanConfig(fraction=0.05, crop_padding=1),
        anp=ANPConfig(learning=AdversarialConfig(steps=500, batch_size=32)),
        selection=ThresholdConfig(thresholds=THRESHOLDS),
    )
    return ml_collections.ConfigDict(as_dict(config))
