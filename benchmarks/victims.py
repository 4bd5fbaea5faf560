"""Victims of a bench, for benchmarks that ask other things about them."""

import pathlib
from typing import Any

from otbr_jax.data import sources
from otbr_jax.plan import Setup
from otbr_jax.runs.devices import batch_mesh
from otbr_jax.runs.networks import open_network
from otbr_jax.runs.run import Run
from otbr_jax.runs.store import open_workdir
from otbr_jax.studies.bench import Cell
from otbr_jax.studies.repair_config import repaired_by
from otbr_jax.victims.victims import open_victim, subject_of


def opened(cell: Cell, workdir: str) -> tuple[Any, Setup, dict[str, Any]]:
    """The settings of the default on a cell's victim, its setup, and what plans are given.

    The victim is reloaded from the bench's working directory, or trained there.
    """
    config = repaired_by("disarm", cell.config)
    subject = open_network(config.model)
    shape, classes = subject.network.image_shape, subject.network.num_classes
    dataset = sources.load(config.data, image_shape=shape, num_classes=classes)
    with open_workdir(pathlib.Path(workdir) / cell.group, subject=subject_of(config)) as directory:
        run = Run(config, directory, subject, batch_mesh(), layers=config.way.layers(config))
        return config, run.setup, {"victim": open_victim(run, dataset).stage.value["variables"]}
