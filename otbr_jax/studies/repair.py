"""From a suspicious network to a repaired one: victim -> the plan of a defence -> evaluation -> report.

What launchers and notebooks call. Everything is decided by a `RepairConfig`; every stage is saved in the working
directory, and reloaded when nothing it depends on has changed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax

from otbr_jax.data import sources
from otbr_jax.data.clean import Clean, load_clean
from otbr_jax.data.sources import Dataset
from otbr_jax.defenses import grid as grids
from otbr_jax.graph.choose import choose_layers
from otbr_jax.interop.matching import file_name, write_like
from otbr_jax.metrics import Metrics, evaluate_predictions
from otbr_jax.paths import local_path
from otbr_jax.plan import ROOT, Setup, Shown, Step, named_key, needs
from otbr_jax.runs import hosts, timing
from otbr_jax.runs.checkpoints import numeric_leaves, replace_checkpoint
from otbr_jax.runs.devices import batch_mesh, check_batch_size
from otbr_jax.runs.identify import named
from otbr_jax.runs.networks import check_classes, open_network
from otbr_jax.runs.numerics import as_usual
from otbr_jax.runs.progress import say
from otbr_jax.runs.run import Run
from otbr_jax.runs.store import open_workdir
from otbr_jax.settings import declarations
from otbr_jax.studies.familiar import check_familiar
from otbr_jax.studies.outputs import replacing, write_outputs
from otbr_jax.studies.repair_config import AnyRepairConfig, clean_augmentation
from otbr_jax.studies.results import Repair
from otbr_jax.types import Batch, Network, Variables, check_finite, unchanged
from otbr_jax.victims import comes_back, evaluation
from otbr_jax.victims.victims import check_trainable, open_victim, subject_of, test_set


@as_usual()
def repair(
    config: AnyRepairConfig,
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
    config = dataclasses.replace(config, model=named(config.model))
    mesh, defense = batch_mesh(devices), config.way
    for name, size in defense.batch_sizes(config).items():
        check_batch_size(size, mesh, name=name)
    subject = open_network(config.model)
    network = subject.network
    check_classes(network)
    layers = choose_layers(subject.graph, defense.layers(config))
    defense.check(Setup(network, subject.graph, layers), config)  # before any work
    dataset = sources.load(config.data, image_shape=network.image_shape, num_classes=network.num_classes)
    if subject.variables is None:
        check_batch_size(config.training.batch_size, mesh, name="training.batch_size")
    check_trainable(config, subject, dataset)
    clean = None if defense.data == "none" else clean_images(config, dataset, network)
    if subject.variables is not None:
        brought = dataclasses.replace(network, prepare=partial(sources.preprocess, config=config.data))
        familiar = partial(check_familiar, brought, subject.variables)
        if dataset is not None:
            say(familiar(dataset.test, name="data.name", what=f"the test images of {config.data.name!r}"))
        if clean is not None:
            say(familiar(clean.images, name="clean.name", what=clean.provenance))
    own = None if clean is None else Batch(*map(jax.numpy.asarray, clean.images))
    given = defense.given(config, own, config.clean_seed)
    comes_back.check_possible(config.comes_back, dataset, mesh)
    with (
        open_workdir(workdir, subject=subject_of(config), shared=shared) as directory,
        timing.profile(directory.path, wanted=profile) as trace,
    ):
        folder = directory.path / results
        if line := replacing(folder, config.defense):
            say(line)
        varied = unchanged if clean is None else clean_augmentation(config)
        run = Run(config, directory, subject, mesh, layers=defense.layers(config), augment=varied)
        victim = open_victim(run, dataset)
        given = {"victim": victim.stage.value["variables"], **given}
        repeated = dataclasses.replace(run, repetition=config.repetition) if config.repetition else run
        defended = repeated.plan(defense.plan(config), given)
        repaired = defended[config.networks[-1]].value.variables
        check_finite(repaired, name="the repaired network")
        restored = subject.restore(repaired)
        files = [] if subject.template is None else [folder / file_name(subject.template)]

        def leave() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            replace_checkpoint(folder / "repaired", numeric_leaves(restored))
            if subject.template is not None:
                write_like(subject.template, repaired, files[0])

        hosts.first(leave)
        stages = {**victim.stages, **defended}
        test = None if dataset is None else test_set(run, dataset.test, victim)
        if test is not None:
            known = {**given, **defended, "test": test}
            stages |= repeated.plan((measuring_step(config),), known)
            seen = None if clean is None else clean.images
            stages |= comes_back.measured(run, dataset, victim, repaired, test, config.comes_back, seen=seen)
        provenance = None if clean is None else clean.provenance
        result = Repair(
            restored, network, layers, stages, dataset, test, config, folder, tuple(files), provenance, trace
        )
        hosts.first(lambda: write_outputs(result))
        return result


def clean_images(config: AnyRepairConfig, dataset: Dataset | None, network: Network) -> Clean:
    """The defender's clean images, which `config.clean` names; raises InputError as `load_clean`."""
    shape, classes = network.image_shape, network.num_classes
    return load_clean(config.clean, dataset, image_shape=shape, num_classes=classes, seed=config.clean_seed)


def measuring_step(config: AnyRepairConfig) -> Step:
    """The last step: metrics and predictions of all networks, and of the defence's grid of settings, in one program."""
    grid, names = config.way.grid(config), config.networks
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

    method = {name: getattr(config, name) for name in declarations(config.way.Config)}
    return Step(
        "evaluation",
        measure,
        needs(*dict.fromkeys((*names, *more)), "test"),
        {"networks": names, "defense": config.defense, "method": method},
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
