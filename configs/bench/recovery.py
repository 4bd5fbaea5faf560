"""The default with the suspicious class recovered after patching: accuracy that costs safety.

    python -m launch.bench --grid=configs/bench/recovery.py --workdir=runs/cpu --results=results/bench_recovery.jsonl

The victims of `configs/bench/otbr_plus.py`, reloaded in its working directory; patched less far, so that
more of the class is there to build on, and recovered once.
"""

import dataclasses

from configs.bench import otbr_plus
from otbr_jax.settings import change
from otbr_jax.studies.bench import Bench, Cell


def recovered(cell: Cell) -> Cell:
    """The same cell with a recovery."""
    patching = dataclasses.replace(cell.config.method.trigger_finetuning, relearnings=1, own=0.35)
    return dataclasses.replace(cell, config=change(cell.config, trigger_finetuning=patching))


def get_grid() -> Bench:
    """Every victim, patched and recovered."""
    return Bench("recovery", tuple(map(recovered, otbr_plus.get_grid().cells)))
