"""TSBD on the victims of the reduced bench: 5 % clean images, n chosen with them, other n for comparison.

    python -m launch.bench --grid=configs/bench/tsbd.py --workdir=runs/cpu --results=results/bench_tsbd.jsonl

In the working directory of `configs/bench/cpu.py` the victims are those of its cells, and are reloaded. Fine-tuning as
published: 20 epochs of batches of 256 at a learning rate of 0.01, with the training's crops and flips.
"""

import dataclasses

from configs.bench import cpu
from otbr_jax.data.clean import CleanConfig
from otbr_jax.experiments.bench import Cell, Grid
from otbr_jax.experiments.repair_config import SweepConfig
from otbr_jax.selection import SelectionConfig

N = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)


def with_tsbd(cell: Cell) -> Cell:
    """The same victim, repaired with clean images."""
    training = cell.config.training
    config = dataclasses.replace(
        cell.config,
        defense="tsbd",
        clean=CleanConfig(crop_padding=training.crop_padding, flip=training.flip),
        selection=SelectionConfig(n=N),
        sweep=SweepConfig(n=N),
    )
    return dataclasses.replace(cell, config=config)


def get_grid() -> Grid:
    """The cells of the reduced bench, MNIST's first."""
    cells = [with_tsbd(cell) for cell in cpu.get_grid().cells]
    return Grid("tsbd", tuple(sorted(cells, key=lambda cell: cell.config.data.name != "mnist")))
