"""Victims of a bench, for benchmarks that ask other things about them."""

import pathlib
from typing import Any, NamedTuple

import jax

from otbr_jax.defenses.registry import defense
from otbr_jax.metrics import Metrics
from otbr_jax.plan import Setup
from otbr_jax.runs.run import Run
from otbr_jax.runs.session import open_session
from otbr_jax.studies.bench import Cell
from otbr_jax.studies.repair import measure_networks
from otbr_jax.studies.repair_config import repaired_by
from otbr_jax.types import Variables
from otbr_jax.victims.victims import open_victim, test_set


class BenchVictim(NamedTuple):
    """A victim: the settings of the default on it, its setup and variables, and how it does on test images."""

    config: Any
    setup: Setup
    variables: Variables
    metrics: Metrics


def open_cell(cell: Cell, workdir: str) -> BenchVictim:
    """The victim of a cell, which is reloaded from the bench's working directory, or trained there."""
    config = repaired_by("disarm", cell.config)
    session = open_session(config.victim.model, config.victim.data)
    with session.directory(pathlib.Path(workdir) / cell.group) as directory:
        layers = defense(config.defense).layers(config.method)
        run = Run(session, directory, config.victim.seed, layers=layers)
        victim = open_victim(run, config.victim.attack, config.victim.training)
        variables, test = victim.variables, test_set(run, victim)
    measured = jax.jit(lambda variables, test: measure_networks(run.setup, {"victim": variables}, test))
    return BenchVictim(config, run.setup, variables, measured(variables, test)["metrics"]["victim"])
