"""CLP on the default victim: prunes the channels with the largest Lipschitz bounds, without data.

    python -m launch.repair --config=configs/clp.py --workdir=runs/clp

As published (u = 3). A network of your own: `--config.model.checkpoint=victim.pt`, and the flags of
configs/own_network.py. What it does and when: docs/defences/clp.md.

Expected: a minute on two CPU cores, most of it the training of the victim.
"""

import ml_collections

from configs import otbr
from otbr_jax.settings import as_dict, from_dict
from otbr_jax.studies.repair_config import RepairConfig, repaired_by


def get_config() -> ml_collections.ConfigDict:
    """The settings; every field can be set on the command line as `--config.FIELD=VALUE`."""
    config = repaired_by("clp", from_dict(RepairConfig, otbr.get_config().to_dict()))
    return ml_collections.ConfigDict(as_dict(config))
