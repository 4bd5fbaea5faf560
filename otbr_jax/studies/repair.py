"""From a suspicious network to a repaired one: victim -> the plan of a defence -> evaluation -> report.

Launchers and notebooks call `repair`. A `RepairConfig` holds all settings. Every stage is saved in the working
directory, and reloaded if nothing that it depends on has changed.
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
from otbr_jax.studies.outputs import replacement_warning, write_outputs
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
    """Repairs the network that `config` names, or a victim trained for the purpose, measures it and writes a report.

    Writes into `workdir` the checkpoint `repaired`, `metrics.json`, `neuron_scores.csv` and `report.html`; and for a
    network from a PyTorch or safetensors file, a repaired file of the same format.

    Guarantee: the repair itself uses no image, or if the defence takes clean images, those that `config.clean` names.
    All other data are used only to train a victim and to measure.

    Args:
      config: the settings.
      workdir: directory for the stages and the results; resumed if it has been used before.
      results: folder inside `workdir` for the results, so that several runs can share its stages.
      shared: whether other processes may work in `workdir` at the same time, with other `results`.
      devices: the devices that share the work; by default all local ones.
      profile: whether a JAX trace of the run is written to `workdir`/profile; see `timing.profile`.

    Returns:
      The repaired network and all results.

    Raises:
      InputError: names what is wrong with the settings, the checkpoint, the data or the working directory.
    """
    local_path(workdir, name="workdir")  # before any work
    session = open_session(config.victim.model, config.victim.data, devices=devices)
    config = change(config, model=session.source.config)  # with the sizes that its file has
    preparation = prepare(config, session)
    with (
        session.directory(workdir, shared=shared) as directory,
        timing.profile(directory.path, wanted=profile) as trace,
    ):
        folder = directory.path / results
        if line := replacement_warning(folder, config.defense):
            say(line)
        run = Run(session, directory, config.victim.seed, layers=preparation.layers, augment=preparation.augment)
        repetition = dataclasses.replace(run, repetition=config.repetition) if config.repetition else run
        victim = open_victim(run, config.victim.attack, config.victim.training)
        inputs = {"victim": victim.variables, **preparation.inputs}
        own_stages = repetition.plan(preparation.plan, inputs)
        repaired = own_stages[preparation.networks[-1]].value.variables
        check_finite(repaired, name="the repaired network")
        files = hosts.first(lambda: write_network(session.source, repaired, folder))
        test, stages = None, {**victim.stages, **own_stages}
        if session.dataset is not None:
            test = test_set(run, victim)
            stages |= repetition.plan((evaluation_step(config),), {**inputs, **own_stages, "test": test})
            recipe, settings = config.victim.training, config.relearning
            stages |= relearning.measure_relearning(
                run, victim, repaired, test, settings, recipe=recipe, clean=preparation.clean_images
            )
        result = Repair(
            session.source.restore(repaired), session.source.network, run.setup.layers, stages, session.dataset, test,
            config, folder, tuple(folder / name for name in files), preparation.clean, trace,
        )  # fmt: skip
        hosts.first(lambda: write_outputs(result))
        return result


class Preparation(NamedTuple):
    """A defence's plan for a network, and the inputs of that plan.

    Attributes:
      plan: its steps.
      networks: the steps that return networks; the last one returns the repaired network.
      layers: which layers steps may score and repair, see `choose_layers`.
      inputs: the inputs of the steps beside the network.
      clean: one line about the clean images; None without.
      clean_images: the clean images; None without.
      augment: how they are augmented.
    """

    plan: Plan
    networks: tuple[str, ...]
    layers: str
    inputs: Mapping[str, Any]
    clean: str | None = None
    clean_images: Images | None = None
    augment: Augment = unchanged


def prepare(config: RepairConfig, session: Session) -> Preparation:
    """Checks that the defence can repair this network, and builds its plan; nothing is computed or written yet.

    Raises:
      InputError: if the defence cannot repair the network, the images are too few, or the network does not know them.
    """
    method, source = defense(config.defense), session.source
    for name, size in method.batch_sizes(config.method).items():
        check_batch_size(size, session.mesh, name=name)
    layers = method.layers(config.method)
    method.check(set_up(source.network, source.graph, layers=layers), config.method)
    check_trainable(session, config.victim.attack, config.victim.training)
    clean = None if method.data == "none" else session.clean(config.clean, seed=config.clean_seed)
    check_datasets(session, clean)
    batch = None if clean is None else Batch(*map(jax.numpy.asarray, clean.images))
    inputs = method.given(config.method, batch, config.clean_seed)
    relearning.check_possible(config.relearning, session)
    preparation = Preparation(method.plan(config.method), method.networks(config.method), layers, inputs)
    if clean is None:
        return preparation
    augment = clean_augmentation(config.clean)
    return preparation._replace(clean=clean.provenance, clean_images=clean.images, augment=augment)


def check_datasets(session: Session, clean: Clean | None) -> None:
    """Prints how many of the images a user's network classifies correctly; raises InputError if hardly any."""
    variables, dataset = session.source.variables, session.dataset
    if variables is None:
        return
    check = partial(check_data, session.network, variables)
    if dataset is not None:
        say(check(dataset.test, name="data.name", what=f"the test images of {session.data.name!r}"))
    if clean is not None:
        say(check(clean.images, name="clean.name", what=clean.provenance))


def write_network(source: Source, repaired: Variables, folder: pathlib.Path) -> list[str]:
    """Writes a repaired network as the checkpoint `repaired`, and in the user's format; returns the latter's names."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_checkpoint(folder / "repaired", numeric_leaves(source.restore(repaired)))
    if source.template is None:
        return []
    name = file_name(source.template)
    write_like(source.template, repaired, folder / name)
    return [name]


def evaluation_step(config: RepairConfig) -> Step:
    """The last step: metrics and predictions of all networks, and of the defence's grid of settings, in one program."""
    method = defense(config.defense)
    grid, names = method.grid(config.method), method.networks(config.method)
    more = () if grid is None else grid.needs

    def measure(setup: Setup, settings: Any, *, key: jax.Array, report: Any, test: Any, **values: Any) -> Any:
        del settings
        networks = {name: values[name] if name == "victim" else values[name].variables for name in names}
        results = measure_networks(setup, networks, test)
        if grid is not None:
            some, screening = grid.screening, None
            if 0 < some < len(test.labels):
                few = evaluation.balanced(test, some, key=named_key(key, "screening"))
                screening = grids.Screening(partial(_measure, setup, few), some, len(test.labels))
            ask, own = partial(_measure, setup, test), {name: values[name] for name in grid.needs}
            results["sweep"] = grids.measure(grid, setup, ask, key=key, report=report, screening=screening, **own)
        return results

    return Step(
        "evaluation",
        measure,
        needs(*dict.fromkeys((*names, *more)), "test"),
        {"networks": names, "defense": config.defense, "method": config.method},
        key=ROOT,
        shown=Shown(
            "evaluation" if grid is None else f"evaluation of {' x '.join(grid.axes)}",
            total=1 if grid is None else len(grid.settings),
            unit="step" if grid is None else grid.unit,
        ),
    )


def _measure(setup: Setup, test: evaluation.TestSet, variables: Variables) -> Metrics:
    return evaluation.measure(setup.network, variables, test)


def measure_networks(setup: Setup, networks: Mapping[str, Variables], test: evaluation.TestSet) -> dict[str, Any]:
    """`predictions` and `metrics` of every network, by its name; jits."""
    predictions = {
        name: evaluation.predict_both(setup.network, variables, test) for name, variables in networks.items()
    }
    metrics = {
        name: evaluate_predictions(each.clean, each.triggered, test.labels, target=test.goals)
        for name, each in predictions.items()
    }
    return {"predictions": predictions, "metrics": metrics}
