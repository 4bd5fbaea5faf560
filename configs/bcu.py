"""BCU on the default victim: re-initialises weights and distils the suspicious network into the result, without data.

    python -m launch.repair --config=configs/bcu.py --workdir=runs/bcu

As published, with procedural images in place of unlabelled ones. A network of your own:
`--config.model.checkpoint=victim.pt`, and the flags of configs/own_network.py. What it does: docs/defences/bcu.md.

Expected: about a minute and a quarter on one core, plus the training of the victim. The backdoors stay
(docs/leaderboard.md).
"""

import ml_collections

from configs import otbr
from otbr_jax.settings import as_dict, from_dict
from otbr_jax.studies.repair_config import RepairConfig, repaired_by

SETTINGS = dict[str, object]()
"""The defaults."""


def get_config() -> ml_collections.ConfigDict:
    """The settings; every field can be set on the command line as `--config.FIELD=VALUE`."""
    config = repaired_by("bcu", from_dict(RepairConfig, otbr.get_config().to_dict()), **SETTINGS)
    return ml_collections.ConfigDict(as_dict(config))
