"""BCU on the embedded default: weights are drawn anew, and the suspicious network teaches the rest, without data.

    python -m launch.repair --config=configs/bcu.py --workdir=runs/bcu

As published, on procedural pictures in the place of unlabelled images. A network of your own:
`--config.model.checkpoint=victim.pt`, with what configs/own_network.py says of it. What it does: docs/defences/bcu.md.

Expected: about a minute and a quarter on one core beside the training of the victim. The leaderboard says how it does
(docs/leaderboard.md): the backdoors stay.
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
