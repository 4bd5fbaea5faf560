"""OTBR+ that relearns the flagged class after fine-tuning on inverted triggers: accuracy at the cost of safety.

    python -m launch.bench --grid=configs/bench/relearning.py --workdir=runs/cpu --results=results/bench_recovery.jsonl

The victims of `configs/bench/otbr_plus.py`, reloaded from its working directory. The network is fine-tuned less far, so
that more of the class is left to build on, and the class is relearned once.
"""

import dataclasses

from configs.bench import otbr_plus
from otbr_jax.settings import change
from otbr_jax.studies.bench import Bench, Cell


def with_relearning(cell: Cell) -> Cell:
    """The same cell, whose class is relearned once."""
    finetuning = dataclasses.replace(cell.config.method.trigger_finetuning, relearnings=1, own=0.35)
    return dataclasses.replace(cell, config=change(cell.config, trigger_finetuning=finetuning))


def get_grid() -> Bench:
    """Every victim, repaired with relearning."""
    return Bench("relearning", tuple(map(with_relearning, otbr_plus.get_grid().cells)))
