"""OTBR+: OTBR that chooses gamma and lambda without data or an oracle, and may return the network unchanged.

    python -m launch.repair --config=configs/otbr_plus.py --workdir=runs/otbr_plus

It uses the suspicious network alone:

- Synthetic images are inverted from the network, and a trigger for every class.
- More and more neurons are pruned and fused, and the predictions of each network are compared.
- If no class is flagged, the network is returned unchanged.
- Otherwise the chosen setting weakens the flagged class most while the other predictions stay (`fused`).
- The suspicious network is then fine-tuned on its own images with inverted triggers, no further than needed.

Strong fine-tuning costs accuracy on the flagged class. `--config.trigger_finetuning.relearnings=1` relearns some of it,
and in some networks the backdoor too.

Expected: ACC / ASR 99.6 / 100.0 before and about 94 / 1 after, in about ten minutes on two CPU cores. Other victims:
docs/results/otbr_plus.md (rows: results/bench_otbr_plus.jsonl).

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
    """The same victim, repaired by OTBR+; the sweep is the grid that it chooses from."""
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
