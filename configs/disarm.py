"""The default: finds the class that some trigger reaches too cheaply, and teaches that the trigger means nothing.

    python -m launch.repair --config=configs/disarm.py --workdir=runs/disarm

The default of `launch.repair`. It needs no image. Procedural pictures are made, and for every class the cheapest
trigger of each family is searched: patch, addition, smooth addition, wave, warp, generator. If one class is out of line
the network is taught, by its own logits, to answer pictures with that trigger as those without it. Otherwise nothing is
changed. What it does and when: docs/defences/disarm.md.

Expected: ACC / ASR 99.6 / 100.0 before and about 99 / 1 after, in about four minutes on two CPU cores, a quarter of it
the training of the victim. How it does on other victims: docs/results/disarm.md, whose rows stand in
results/bench_disarm.jsonl; `configs/otbr_plus.py` finds some that it misses.

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
