"""Disarm, the default: flags a class whose minimal triggers are anomalously small, and unlearns those triggers.

    python -m launch.repair --config=configs/disarm.py --workdir=runs/disarm

It needs no image. For every class, the minimal trigger of each family is inverted on procedural images: patch,
additive, low-frequency, wave, warp, generator. If a class is flagged, the network is trained to keep its own logits
when an inverted trigger is added. Otherwise the network is returned unchanged. What it does and when:
docs/defences/disarm.md.

Expected: ACC / ASR 99.6 / 100.0 before and about 99 / 1 after, in about four minutes on two CPU cores, a quarter of it
the training of the victim. Other victims: docs/results/disarm.md (rows: results/bench_disarm.jsonl).
`configs/otbr_plus.py` detects some that it misses.

A network of your own: configs/own_network.py.
"""

import ml_collections

from configs import otbr
from otbr_jax.settings import as_dict, from_dict
from otbr_jax.studies.repair_config import RepairConfig, repaired_by


def get_config() -> ml_collections.ConfigDict:
    """The settings; every field can be set on the command line as `--config.FIELD=VALUE`."""
    config = repaired_by("disarm", from_dict(RepairConfig, otbr.get_config().to_dict()))
    return ml_collections.ConfigDict(as_dict(config))
