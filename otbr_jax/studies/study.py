"""A study: victims, a plan for each, and its outputs: rows, tables, pages."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from otbr_jax.data.sources import Dataset, Images
from otbr_jax.errors import InputError
from otbr_jax.files import write_text
from otbr_jax.graph.choose import choose_layers
from otbr_jax.graph.graph import Layer
from otbr_jax.metrics import Metrics
from otbr_jax.plan import Plan
from otbr_jax.runs import hosts
from otbr_jax.runs.devices import check_batch_size, replicate
from otbr_jax.runs.run import Run
from otbr_jax.runs.session import open_session
from otbr_jax.settings import declarations
from otbr_jax.steps.score import Scores
from otbr_jax.types import Augment, Batch, Network, Variables, unchanged
from otbr_jax.victims import evaluation
from otbr_jax.victims.config import VictimConfig
from otbr_jax.victims.victims import Victim, check_trainable, open_victim, test_set


class Case(NamedTuple):
    """One victim of a study.

    Attributes:
      study: the settings of the study.
      config: those of this victim, and of its treatment.
      run: its run.
      victim: the victim.
      dataset: the images that it was trained on, and those that measure it.
    """

    study: Any
    config: Any
    run: Run
    victim: Victim
    dataset: Dataset


class Finding(NamedTuple):
    """The results of one victim.

    Attributes:
      config: the settings of the victim, and of its treatment.
      inputs: the inputs of its plan.
      values: `{step name: value}`, arrays on the host.
      metrics: ACC, ASR and RA of the victim; without an attack the latter two are about untriggered images.
      provenance: what the images are.
      layers: the layers that are studied, in execution order.
    """

    config: Any
    inputs: Mapping[str, Any]
    values: Mapping[str, Any]
    metrics: Metrics
    provenance: str
    layers: tuple[Layer, ...]

    def scores(self, step: str) -> Scores:
        """The scores that a step computed, in execution order."""
        return self.ordered(self.values[step])

    def ordered(self, scores: Scores) -> Scores:
        """Scores in execution order, whatever order they were stored in."""
        return {layer.name: scores[layer.name] for layer in self.layers}


@dataclasses.dataclass(frozen=True)
class Study:
    """Victims, a plan for each, and functions that turn the findings into rows, files and tables.

    Attributes:
      name: of its files.
      Config: its settings, a `VictimConfig`.
      layers: `config -> which layers are studied`, see `choose_layers`.
      each: `config -> the settings of every victim`, and of its treatment.
      inputs: `Case -> {name: arrays}`, the inputs of the plan beside `victim`, the victim's variables.
      plan: `(Case, inputs) -> Plan`.
      rows: `(config, findings) -> rows of results`, without commit, hardware and date.
      files: `(config, findings) -> {file name: text}`, the files in the working directory.
      table: `(config, findings) -> text`, printed on the terminal.
      descriptions: a few words about each of the files, by name.
      figures: `(config, findings) -> {ending of a file's name: figure}`, written beside rows of results.
      augment: `config -> how clean images are augmented`.
      batch_sizes: `config -> {setting: size}`, the batches that devices share.
    """

    name: str
    Config: type[Any]
    layers: Callable[[Any], str]
    each: Callable[[Any], Sequence[Any]]
    inputs: Callable[[Case], Mapping[str, Any]]
    plan: Callable[[Case, Mapping[str, Any]], Plan]
    rows: Callable[[Any, Sequence[Finding]], list[dict[str, Any]]]
    files: Callable[[Any, Sequence[Finding]], Mapping[str, str]]
    table: Callable[[Any, Sequence[Finding]], str]
    descriptions: Mapping[str, str]
    figures: Callable[[Any, Sequence[Finding]], Mapping[str, Any]] = lambda config, findings: {}
    augment: Callable[[Any], Augment] = lambda config: unchanged
    batch_sizes: Callable[[Any], Mapping[str, int]] = lambda config: {}


def run_study(
    study: Study, config: Any, workdir: str | os.PathLike[str], *, devices: Sequence[jax.Device] | None = None
) -> list[Finding]:
    """Runs a study on every victim that its settings name, and writes its files into `workdir`.

    Args:
      study: the study.
      config: its settings; with a checkpoint in `model` that network is the victim.
      workdir: directory for the stages and the results; resumed if it has been used before.
      devices: the devices that share the work; by default all local ones.

    Returns:
      The findings, victim by victim.

    Raises:
      InputError: names what is wrong with the settings, the checkpoint, the data or the working directory.
    """
    session = open_session(config.model, config.data, devices=devices)
    layers, findings = study.layers(config), []
    studied = choose_layers(session.source.graph, layers)
    dataset = session.dataset
    if dataset is None:
        raise InputError("data.name: expected images to study victims with, found 'none'")
    check_trainable(session, config.attack, config.training)
    for name, size in study.batch_sizes(config).items():
        check_batch_size(size, session.mesh, name=name)
    with session.directory(workdir) as directory:
        for each in study.each(config):
            run = Run(session, directory, each.seed, layers=layers, augment=study.augment(each))
            case = Case(config, each, run, open_victim(run, each.attack, each.training), dataset)
            inputs = study.inputs(case)
            stages = run.plan(study.plan(case, inputs), {"victim": case.victim.variables, **inputs})
            values = {name: stage.value for name, stage in stages.items()}
            findings.append(Finding(each, inputs, values, victim_metrics(case), dataset.provenance, studied))

        def write_files() -> None:
            for name, text in study.files(config, findings).items():
                write_text(directory.path / name, text)

        hosts.first(write_files)
    return findings


def training_images(dataset: Dataset) -> Images:
    """The training images; test images for a network that has seen no training images here."""
    return dataset.test if dataset.train is None else dataset.train


def victim_config(config: VictimConfig, **changes: Any) -> VictimConfig:
    """The settings of a victim alone, out of those of a study, with these fields changed."""
    return VictimConfig(**victim_fields(config) | changes)


def victim_fields(config: VictimConfig) -> dict[str, Any]:
    """The settings of a victim by name, out of those of a study."""
    return {name: getattr(config, name) for name in declarations(VictimConfig)}


def attacks_of(config: Any) -> list[Any]:
    """The attacks of a study: one for each name in `attacks`, or the one of `attack`."""
    return [dataclasses.replace(config.attack, name=name) for name in config.attacks] or [config.attack]


def draw_batch(key: jax.Array, *, batch: Batch, size: int, network: Network) -> Batch:
    """A batch of `size` uint8 images, drawn uniformly and with replacement, as the network takes them."""
    chosen = jax.random.randint(key, (size,), 0, len(batch.labels))
    return Batch(network.prepare(batch.images[chosen]), batch.labels[chosen])


def victim_metrics(case: Case) -> Metrics:
    """ACC, ASR and RA of a victim; without an attack the latter two are about untriggered images."""
    run = case.run
    test = test_set(run, case.victim)

    @jax.jit
    def measure(variables: Variables, test: evaluation.TestSet) -> Metrics:
        return evaluation.measure(run.shared_network, variables, test)

    return measure(*replicate((case.victim.variables, test), run.mesh))


def row_settings(config: VictimConfig) -> dict[str, Any]:
    """All settings of a study as plain JSON values for a row of results, without the folders of one machine."""
    settings: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    settings["model"] |= {"checkpoint": os.path.basename(config.model.checkpoint)}
    settings["data"] |= {"path": os.path.basename(config.data.path), "data_dir": ""}
    return settings


def row_subject(config: VictimConfig) -> dict[str, Any]:
    """What a row of results is about: `dataset`, `network`, and `file`, the checkpoint's name or None."""
    file = os.path.basename(config.model.checkpoint)
    return {
        "dataset": config.data.name,
        "network": f"{config.model.name}-w{config.model.width}",
        "file": file or None,
    }
