"""I-BAU on the default victim: inverts and unlearns a universal perturbation of the clean images, round by round.

    python -m launch.repair --config=configs/i_bau.py --workdir=runs/i_bau

The defender has 5 % of the 1,297 training images. As published, except for what so few and so small images need:

- batches of 32 instead of 256, and 25 rounds instead of 5, so that Adam takes the 50 steps of 5 % of CIFAR-10;
- perturbations of norm 2.9 instead of 10, the same per pixel as on CIFAR-10;
- Adam at 0.001, as in the authors' own script, instead of 0.0001. With 0.0001 the victim of seed 0 kept its backdoor.

What it does: docs/defences/i_bau.md. A network of your own needs clean images, as in configs/tsbd.py.

Expected: a few seconds, plus the training of the victim. With so few images most of the backdoor stays
(docs/leaderboard.md).
"""

import ml_collections

from configs import tsbd
from otbr_jax.defenses.i_bau import IBAUConfig
from otbr_jax.settings import as_dict, from_dict
from otbr_jax.studies.repair_config import RepairConfig, repaired_by

SETTINGS = IBAUConfig(rounds=25, batch_size=32, norm=2.9, learning_rate=1e-3)


def get_config() -> ml_collections.ConfigDict:
    """The settings; every field can be set on the command line as `--config.FIELD=VALUE`."""
    victim = from_dict(RepairConfig, tsbd.get_config().to_dict())
    config = repaired_by("i_bau", victim, clean=victim.clean, i_bau=SETTINGS)
    return ml_collections.ConfigDict(as_dict(config))
