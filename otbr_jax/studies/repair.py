"""From a suspicious network to a repaired one: victim -> the plan of a defence -> evaluation -> report.

What launchers and notebooks call. Everything is decided by a `RepairConfig`; every stage is saved in the working
directory, and reloaded when nothing it depends on has changed.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax

from otbr_jax.data.check import check_data
from otbr_jax.data.clean import Clean, clean_augmentation
from otbr_jax.data.sources import Images
from otbr_jax.defenses import grid as grids
from otbr_jax.defenses.registry import defense
from otbr_jax.interop.matching import file_name, write_like
from otbr_jax.metrics import Metrics, evaluate_predictions
from otbr_jax.paths import local_path
from otbr_jax.plan import ROOT, Plan, Setup, Shown, Step, named_key, needs, set_up
from otbr_jax.runs import hosts, timing
from otbr_jax.runs.checkpoints import numeric_leaves, replace_checkpoint
from otbr_jax.runs.devices import check_batch_size
from otbr_jax.runs.networks import Source
from otbr_jax.runs.numerics import default_numerics
from otbr_jax.runs.progress import say
from otbr_jax.runs.run import Run
from otbr_jax.runs.session import Session, open_session
from otbr_jax.settings import change
from otbr_jax.studies.outputs import replacing, write_outputs
from otbr_jax.studies.repair_config import RepairConfig
from otbr_jax.studies.results import Repair
from otbr_jax.types import Augment, Batch, Variables, check_finite, unchanged
from otbr_jax.victims import evaluation, relearning
from otbr_jax.victims.victims import check_trainable, open_victim, test_set


@default_numerics()
def repair(
    config: RepairConfig,
    workdir: str | os.PathLike[str],
    *,
    results: str = ".",
    shared: bool = False,
    devices: Sequence[jax.Device] | None = None,
    profile: bool = False,
) -> Repair:
    """Repairs the network that `config` names, or a victim trained for the purpose, measures it and reports.

    Leaves in `workdir`: the checkpoint `repaired`, `metrics.json`, `neuron_scores.csv` and `report.html`; and for a
    network that came in a PyTorch or safetensors file, a repaired file like it.

    Guarantee: the repair itself uses no image, or where the defence takes clean images those that `config.clean` names;
    all other data are used to train a victim and to measure only.

    Args:
      config: the settings.
      workdir: directory for the stages and the results; resumed if it has been used before.
      results: folder inside `workdir` for the results, so that several runs can share its stages.
      shared: whether other processes may work in `workdir` at the same time, with other `results`.
      devices: the devices that share the work; by default all local ones.
      profile: whether a JAX trace of the run is written to `workdir`/profile; see `timing.profile`.

    Returns:
      The repaired network and all that is known about it.

    Raises:
      InputError: names what is wrong with the settings, the checkpoint, the data or the working directory.
    """
    local_path(workdir, name="workdir")  # before any work
    session = open_session(config.victim.model, config.victim.data, devices=devices)
    config = change(config, model=session.source.config)  # with what its file says
    means = prepare(config, session)
    with (
        session.directory(workdir, shared=shared) as directory,
        timing.profile(directory.path, wanted=profile) as trace,
    ):
        folder = directory.path / results
        if line := replacing(folder, config.defense):
            say(line)
        run = Run(session, directory, config.victim.seed, layers=means.layers, augment=means.augment)
        again = dataclasses.replace(run, repetition=config.repetition) if config.repetition else run
        victim = open_victim(run, config.victim.attack, config.victim.training)
        given = {"victim": victim.variables, **means.given}
        defended = again.plan(means.plan, given)
        repaired = defended[means.networks[-1]].value.variables
        check_finite(repaired, name="the repaired network")
        files = hosts.first(lambda: leave_network(session.source, repaired, folder))
        test, stages = None, {**victim.stages, **defended}
        if session.dataset is not None:
            test = test_set(run, victim)
            stages |= again.plan((measuring_step(config),), {**given, **defended, "test": test})
            recipe, asked = config.victim.training, config.relearning
            stages |= relearning.measure_relearning(run, victim, repaired, test, asked, recipe=recipe, clean=means.seen)
        result = Repair(
            session.source.restore(repaired), session.source.network, run.setup.layers, stages, session.dataset, test,
            config, folder, tuple(folder / name for name in files), means.clean, trace,
        )  # fmt: skip
        hosts.first(lambda: write_outputs(result))
        return result


class Means(NamedTuple):
    """What a defence repairs a network with.

    Attributes:
      plan: its steps.
      networks: the steps that are networks; the last one is the answer.
      layers: which layers steps may score and repair, see `choose_layers`.
      given: what the steps need beside the network.
      clean: what the clean images are, in a line; None without.
      seen: the clean images.
      augment: how they are varied.
    """

    plan: Plan
    networks: tuple[str, ...]
    layers: str
    given: Mapping[str, Any]
    clean: str | None = None
    seen: Images | None = None
    augment: Augment = unchanged


def prepare(config: RepairConfig, session: Session) -> Means:
    """What the defence repairs this network with; nothing is computed yet, and nothing written.

    Raises:
      InputError: if the defence cannot be used on the network, or the images are too few, or not the network's.
    """
    method, source = defense(config.defense), session.source
    for name, size in method.batch_sizes(config.method).items():
        check_batch_size(size, session.mesh, name=name)
    layers = method.layers(config.method)
    method.check(set_up(source.network, source.graph, layers=layers), config.method)
    check_trainable(session, config.victim.attack, config.victim.training)
    clean = None if method.data == "none" else session.clean(config.clean, seed=config.clean_seed)
    check_images(session, clean)
    batch = None if clean is None else Batch(*map(jax.numpy.asarray, clean.images))
    given = method.given(config.method, batch, config.clean_seed)
    relearning.check_possible(config.relearning, session)
    means = Means(method.plan(config.method), method.networks(config.method), layers, given)
    if clean is None:
        return means
    return means._replace(clean=clean.provenance, seen=clean.images, augment=clean_augmentation(config.clean))


def check_images(session: Session, clean: Clean | None) -> None:
    """Says how many of the images a network that was brought knows; raises InputError if hardly any."""
    variables, dataset = session.source.variables, session.dataset
    if variables is None:
        return
    check = partial(check_data, session.network, variables)
    if dataset is not None:
        say(check(dataset.test, name="data.name", what=f"the test images of {session.data.name!r}"))
    if clean is not None:
        say(check(clean.images, name="clean.name", what=clean.provenance))


def leave_network(source: Source, repaired: Variables, folder: pathlib.Path) -> list[str]:
    """Writes a repaired network as a checkpoint `repaired`, and as it was brought; returns the names of the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_checkpoint(folder / "repaired", numeric_leaves(source.restore(repaired)))
    if source.template is None:
        return []
    name = file_name(source.template)
    write_like(source.template, repaired, folder / name)
    return [name]


def measuring_step(config: RepairConfig) -> Step:
    """The last step: metrics and predictions of all networks, and of the defence's grid of settings, in one program."""
    way = defense(config.defense)
    grid, names = way.grid(config.method), way.networks(config.method)
    more = () if grid is None else grid.needs

    def measure(setup: Setup, settings: Any, *, key: jax.Array, report: Any, test: Any, **values: Any) -> Any:
        del settings
        networks = {name: values[name] if name == "victim" else values[name].variables for name in names}
        measured = measure_networks(setup, networks, test)
        if grid is not None:
            some, screening = grid.screening, None
            if 0 < some < len(test.labels):
                few = evaluation.balanced(test, some, key=named_key(key, "screening"))
                screening = grids.Screening(partial(_ask, setup, few), some, len(test.labels))
            ask, own = partial(_ask, setup, test), {name: values[name] for name in grid.needs}
            measured["sweep"] = grids.measure(grid, setup, ask, key=key, report=report, screening=screening, **own)
        return measured

    return Step(
        "evaluation",
        measure,
        needs(*dict.fromkeys((*names, *more)), "test"),
        {"networks": names, "defense": config.defense, "method": config.method},
        key=ROOT,
        shown=Shown(
            "measuring" if grid is None else f"measuring each {' x '.join(grid.axes)}",
            total=1 if grid is None else len(grid.settings),
            unit="step" if grid is None else grid.unit,
        ),
    )


def _ask(setup: Setup, test: evaluation.TestSet, variables: Variables) -> Metrics:
    return evaluation.measure(setup.network, variables, test)


def measure_networks(setup: Setup, networks: Mapping[str, Variables], test: evaluation.TestSet) -> dict[str, Any]:
    """`predictions` and `metrics` of every network, by its name; jits."""
    predictions = {
        name: evaluation.predict_both(setup.network, variables, test) for name, variables in networks.items()
    }
    metrics = {
        name: evaluate_predictions(found.clean, found.triggered, test.labels, target=test.goals)
        for name, found in predictions.items()
    }
    return {"predictions": predictions, "metrics": metrics}
