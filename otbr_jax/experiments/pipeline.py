"""From a suspicious network to a repaired one: victim -> the stages of a defence -> evaluation -> report.

What launchers and notebooks call. Everything is decided by a `RepairConfig`; every stage is saved in the working
directory, and reloaded when nothing it depends on has changed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from otbr_jax.data import sources
from otbr_jax.data.clean import load_clean
from otbr_jax.data.sources import Dataset
from otbr_jax.runs.devices import check_batch_size, local_mesh
from otbr_jax.runs.checkpoints import numeric_leaves, replace_checkpoint
from otbr_jax.experiments.networks import Subject, open_network
from otbr_jax.experiments.otbr_run import OTBRRun
from otbr_jax.experiments.outputs import write_outputs
from otbr_jax.experiments.repair_config import RepairConfig
from otbr_jax.experiments.results import Repair
from otbr_jax.runs.store import Workdir, open_workdir
from otbr_jax.experiments.tsbd_run import TSBDRun, check_clean
from otbr_jax.experiments.victims import check_trainable, open_victim, subject_of, test_set
from otbr_jax.interop.matching import file_name, write_like
from otbr_jax.layer_choice import choose_layers
from otbr_jax.neuron_graph import Layer
from otbr_jax.types import check_finite


def repair(
    config: RepairConfig,
    workdir: str | os.PathLike[str],
    *,
    results: str = ".",
    devices: Sequence[jax.Device] | None = None,
) -> Repair:
    """Repairs the network that `config` names, or a victim trained for the purpose, measures it and reports.

    Leaves in `workdir`: the checkpoint `repaired`, `metrics.json`, `neuron_scores.csv` and `report.html`; and for a
    network that came in a PyTorch or safetensors file, a repaired file like it.

    Guarantee: the repair itself uses no image (OTBR), or the clean images that `config.clean` names (TSBD); all other
    data are used to train a victim and to measure only.

    Args:
      config: the settings.
      workdir: directory for the stages and the results; resumed if it has been used before.
      results: folder inside `workdir` for the results, so that several runs can share its stages.
      devices: the devices that share the work; by default all local ones.

    Returns:
      The repaired network and all that is known about it.

    Raises:
      InputError: names what is wrong with the settings, the checkpoint, the data or the working directory.
    """
    mesh = local_mesh(devices)
    for name, size in config.batch_sizes().items():
        check_batch_size(size, mesh, name=name)
    subject = open_network(config.model)
    network = subject.network
    layers = choose_layers(subject.graph, config.layers)
    dataset = sources.load(config.data, image_shape=network.image_shape, num_classes=network.num_classes)
    if subject.variables is None:
        check_batch_size(config.training.batch_size, mesh, name="training.batch_size")
    check_trainable(config, subject, dataset)
    with open_workdir(workdir, subject=subject_of(config)) as directory:
        run = _run(config, directory, subject, mesh, layers, dataset)
        victim = open_victim(run, dataset)
        defended = run.defend(victim.stage)
        stages = {**victim.stages, **defended}
        repaired = stages[config.networks[-1]].value["variables"]
        check_finite(repaired, name="the repaired network")
        restored = subject.restore(repaired)
        folder = directory.path / results
        folder.mkdir(parents=True, exist_ok=True)
        replace_checkpoint(folder / "repaired", numeric_leaves(restored))
        files = []
        if subject.template is not None:
            files.append(folder / file_name(subject.template))
            write_like(subject.template, repaired, files[0])
        test = None if dataset is None else test_set(run, dataset.test, victim)
        if test is not None:
            stages["evaluation"] = run.evaluation(test, stages)
        clean = run.clean.provenance if isinstance(run, TSBDRun) else None
        result = Repair(restored, network, layers, stages, dataset, test, config, folder, tuple(files), clean)
        write_outputs(result)
        return result


def _run(
    config: RepairConfig,
    directory: Workdir,
    subject: Subject,
    mesh: Mesh,
    layers: tuple[Layer, ...],
    dataset: Dataset | None,
) -> OTBRRun | TSBDRun:
    if config.defense == "otbr":
        return OTBRRun(config, directory, subject, mesh, layers)
    network = subject.network
    clean = load_clean(
        config.clean, dataset, image_shape=network.image_shape, num_classes=network.num_classes, seed=config.seed
    )
    check_clean(config, images=len(clean.images.labels))
    return TSBDRun(config, directory, subject, mesh, layers, clean)
