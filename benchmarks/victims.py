"""Victims of a bench, for benchmarks that ask other things about them."""

import pathlib
from typing import Any, NamedTuple

import jax

from otbr_jax.data import sources
from otbr_jax.metrics import Metrics
from otbr_jax.plan import Setup
from otbr_jax.runs.devices import batch_mesh
from otbr_jax.runs.networks import open_network
from otbr_jax.runs.run import Run
from otbr_jax.runs.store import open_workdir
from otbr_jax.studies.bench import Cell
from otbr_jax.studies.repair import measure_networks
from otbr_jax.studies.repair_config import repaired_by
from otbr_jax.types import Variables
from otbr_jax.victims.victims import open_victim, subject_of, test_set


class Opened(NamedTuple):
    """A victim: the settings of the default on it, its setup and variables, and how it does on test images."""

    config: Any
    setup: Setup
    variables: Variables
    metrics: Metrics


def opened(cell: Cell, workdir: str) -> Opened:
    """The victim of a cell, which is reloaded from the bench's working directory, or trained there."""
    config = repaired_by("disarm", cell.config)
    subject = open_network(config.model)
    shape, classes = subject.network.image_shape, subject.network.num_classes
    dataset = sources.load(config.data, image_shape=shape, num_classes=classes)
    assert dataset is not None  # a cell's data is not `none`
    with open_workdir(pathlib.Path(workdir) / cell.group, subject=subject_of(config)) as directory:
        run = Run(config, directory, subject, batch_mesh(), layers=config.way.layers(config))
        victim = open_victim(run, dataset)
        variables, test = victim.stage.value["variables"], test_set(run, dataset.test, victim)
    measured = jax.jit(lambda variables, test: measure_networks(run.setup, {"victim": variables}, test))
    return Opened(config, run.setup, variables, measured(variables, test)["metrics"]["victim"])
