"""SAU on the default victim: unlearns shared adversarial examples, which both networks misclassify alike.

    python -m launch.repair --config=configs/sau.py --workdir=runs/sau

The defender has 5 % of the 1,297 training images. As published, except for what so few images need: batches of 32
instead of 256, and 500 epochs instead of 100, so that Adam takes the 1,000 steps that it takes on 5 % of CIFAR-10. What
it does: docs/defences/sau.md. A network of your own needs clean images, as in configs/tsbd.py.

Expected: about a minute and a half on one core, plus the training of the victim. It removes one of four backdoors
(docs/leaderboard.md).
"""

import ml_collections

from configs import tsbd
from otbr_jax.defenses.sau import SAUConfig
from otbr_jax.settings import as_dict, from_dict
from otbr_jax.studies.repair_config import RepairConfig, repaired_by

SETTINGS = SAUConfig(rounds=500, batch_size=32)


def get_config() -> ml_collections.ConfigDict:
    """The settings; every field can be set on the command line as `--config.FIELD=VALUE`."""
    victim = from_dict(RepairConfig, tsbd.get_config().to_dict())
    config = repaired_by("sau", victim, clean=victim.clean, sau=SETTINGS)
    return ml_collections.ConfigDict(as_dict(config))
