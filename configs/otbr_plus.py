"""OTBR without an oracle: gamma and lambda are chosen by images made from the network, and "nothing" is an answer.

    python -m launch.repair --config=configs/otbr_plus.py --workdir=runs/otbr_plus

From the suspicious network alone: images are made, triggers are reverse-engineered for
every class, and networks with more and more neurons pruned and fused are asked how they answer. If no class stands out
the network is left as it is; otherwise the setting that leaves least of that class, while others keep their answers, is
shown (fused), and the network as it came is taught on its own images, no further than needed, that triggers of the
class mean nothing. Where that goes far it costs the class; `--config.trigger_finetuning.relearnings=1` relearns a part
of it, and with some networks the backdoor too.

Expected: ACC / ASR 99.6 / 100.0 before and about 94 / 1 after. Other victims: docs/results/otbr_plus.md, whose rows
stand in results/bench_otbr_plus.jsonl. About ten minutes on two CPU cores.

`configs/disarm.py` keeps more of the class, and is faster.
"""

import dataclasses

import ml_collections

from configs import otbr
from otbr_jax.contrib.pruning_detection import PruningDetectionConfig
from otbr_jax.contrib.trigger_finetuning import TriggerFinetuningConfig
from otbr_jax.settings import as_dict, change, from_dict
from otbr_jax.studies.repair_config import RepairConfig

GAMMA, LAM = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3), (0.5, 0.75)


def plus(config: RepairConfig) -> RepairConfig:
    """The same victim, repaired this way; the sweep is the grid that is chosen from."""
    return change(
        config,
        detection=PruningDetectionConfig(gamma=GAMMA, lam=LAM, least_agreement=0.95),
        trigger_finetuning=TriggerFinetuningConfig(triggers=4),
        sweep=dataclasses.replace(config.method.sweep, gamma=GAMMA, lam=LAM),
    )


def get_config() -> ml_collections.ConfigDict:
    """The settings; every field can be set on the command line as `--config.FIELD=VALUE`."""
    config = from_dict(RepairConfig, otbr.get_config().to_dict())
    return ml_collections.ConfigDict(as_dict(plus(config)))
