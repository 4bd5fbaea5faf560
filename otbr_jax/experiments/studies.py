"""What studies of victims share: the settings of one victim, batches of images, its metrics, settings in a row."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from otbr_jax.data import sources
from otbr_jax.data.sources import Dataset, Images
from otbr_jax.errors import InputError
from otbr_jax.experiments import evaluation
from otbr_jax.runs.devices import local_mesh, replicate
from otbr_jax.experiments.config import VictimConfig
from otbr_jax.experiments.networks import Subject, open_network
from otbr_jax.runs.run import Run
from otbr_jax.experiments.victims import Victim, check_trainable, test_set
from otbr_jax.layer_choice import choose_layers
from otbr_jax.metrics import Metrics
from otbr_jax.neuron_graph import Layer
from otbr_jax.types import Batch, Variables


class Opened(NamedTuple):
    """What a study of victims works with: devices, the network, its layers that are looked at, and the data."""

    mesh: Mesh
    subject: Subject
    layers: tuple[Layer, ...]
    dataset: Dataset


def open_study(config: VictimConfig, *, layers: str, devices: Sequence[jax.Device] | None) -> Opened:
    """Builds the network and loads the data of a study.

    Args:
      config: the settings.
      layers: which layers are looked at, see `choose_layers`.
      devices: the devices that share the work; by default all local ones.

    Raises:
      InputError: names what is wrong with the settings, the checkpoint or the data.
    """
    subject = open_network(config.model)
    network = subject.network
    chosen = choose_layers(subject.graph, layers)
    dataset = sources.load(config.data, image_shape=network.image_shape, num_classes=network.num_classes)
    if dataset is None:
        raise InputError("data.name: expected images to study victims with, found 'none'")
    check_trainable(config, subject, dataset)
    return Opened(local_mesh(devices), subject, chosen, dataset)


def training_images(dataset: Dataset) -> Images:
    """The training images; test images for a network that has seen no training images here."""
    return dataset.test if dataset.train is None else dataset.train


def victim_config(config: VictimConfig, **changes: Any) -> VictimConfig:
    """The settings of a victim alone, out of those of a study, with these fields changed."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(VictimConfig)}
    return VictimConfig(**fields | changes)


def drawn(key: jax.Array, *, images: Batch, size: int, prepare: Callable[[jax.Array], jax.Array]) -> Batch:
    """A batch of `size` uint8 images, drawn uniformly and with replacement, as the network takes them."""
    chosen = jax.random.randint(key, (size,), 0, len(images.labels))
    return Batch(prepare(images.images[chosen]), images.labels[chosen])


def victim_metrics(run: Run, victim: Victim, test: Images) -> Metrics:
    """ACC, ASR and RA of a victim; without an attack the latter two are about untriggered images."""
    tested = test_set(run, test, victim)

    @jax.jit
    def measure(variables: Variables, tested: evaluation.TestSet) -> Metrics:
        return evaluation.measure(run.network, variables, tested, prepare=run.prepare, mesh=run.mesh)

    return measure(*replicate((victim.stage.value["variables"], tested), run.mesh))


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
