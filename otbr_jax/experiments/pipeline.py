"""From a suspicious network to a repaired one: victim -> unlearned -> scores -> pruned -> fused -> evaluation.

What launchers and notebooks call. Everything is decided by a `RepairConfig`; every stage is saved in the working
directory, and reloaded when nothing it depends on has changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from otbr_jax import fusion, pruning, unlearning, weight_change
from otbr_jax.attacks import poisoning
from otbr_jax.data import sources
from otbr_jax.data.sources import Dataset
from otbr_jax.defenses.otbr import choose_layers
from otbr_jax.errors import InputError
from otbr_jax.experiments import evaluation, parallel, training
from otbr_jax.experiments.checkpoints import numeric_leaves, replace_checkpoint
from otbr_jax.experiments.config import RepairConfig
from otbr_jax.experiments.evaluation import TestSet
from otbr_jax.experiments.networks import open_network
from otbr_jax.experiments.outputs import write_outputs
from otbr_jax.experiments.progress import progress_bar
from otbr_jax.experiments.results import Repair
from otbr_jax.experiments.stages import Stage, Workdir, content_digest, open_workdir
from otbr_jax.interop.matching import file_name, write_like
from otbr_jax.neuron_graph import Layer
from otbr_jax.types import Network, Variables, check_finite


def repair(
    config: RepairConfig, workdir: str | os.PathLike[str], *, devices: Sequence[jax.Device] | None = None
) -> Repair:
    """Repairs the network that `config` names, or a victim trained for the purpose, measures it and reports.

    Leaves in `workdir`: the checkpoint `repaired`, `metrics.json`, `neuron_scores.csv` and `report.html`; and for a
    network that came in a PyTorch or safetensors file, a repaired file like it.

    Guarantee: the repair itself uses no image; data are used to train a victim and to measure only.

    Args:
      config: the settings.
      workdir: directory for the stages and the results; resumed if it has been used before.
      devices: the devices that share the work; by default all local ones.

    Returns:
      The repaired network and all that is known about it.

    Raises:
      InputError: names what is wrong with the settings, the checkpoint, the data or the working directory.
    """
    mesh = parallel.local_mesh(devices)
    parallel.check_batch_size(config.otbr.unlearning.batch_size, mesh, name="otbr.unlearning.batch_size")
    subject = open_network(config.model)
    network, suspicious = subject.network, subject.variables
    layers = choose_layers(subject.graph, config.otbr.layers)
    dataset = sources.load(config.data, image_shape=network.image_shape, num_classes=network.num_classes)
    test = _test_set(dataset, config)
    if suspicious is None and (dataset is None or dataset.train is None):
        raise InputError(
            f"model.checkpoint: expected a checkpoint, since data {config.data.name!r} holds no training images "
            "for a victim; found none"
        )
    if suspicious is None:
        parallel.check_batch_size(config.training.batch_size, mesh, name="training.batch_size")
    with open_workdir(workdir, subject=_subject(config)) as directory:
        run = _Run(config, directory, network, subject.like, layers, mesh)
        stages = {}
        if suspicious is not None:
            stages["victim"] = run.given_victim(suspicious)
        else:
            assert dataset is not None
            assert subject.init is not None
            stages["victim"] = run.trained_victim(dataset, subject.init)
        stages["unlearned"] = run.unlearned(stages["victim"])
        stages["scores"] = run.scores(stages["victim"], stages["unlearned"])
        weight_change.check_scores(stages["scores"].value)
        stages["pruned"] = run.pruned(stages["victim"], stages["scores"])
        stages["fused"] = run.fused(stages["victim"], stages["scores"], stages["pruned"])
        repaired = stages["fused"].value["variables"]
        check_finite(repaired, name="the repaired network")
        restored = subject.restore(repaired)
        replace_checkpoint(directory.path / "repaired", numeric_leaves(restored))
        files = []
        if subject.template is not None:
            files.append(directory.path / file_name(subject.template))
            write_like(subject.template, repaired, files[0])
        if test is not None:
            stages["evaluation"] = run.evaluation(test, stages)
        result = Repair(restored, network, layers, stages, dataset, test, config, directory.path, tuple(files))
        write_outputs(result)
        return result


def _subject(config: RepairConfig) -> dict[str, Any]:
    """What a working directory is about; the rest of the settings may change from run to run."""
    model = dataclasses.asdict(config.model)
    if config.model.checkpoint:
        model["checkpoint"] = str(pathlib.Path(os.path.expanduser(config.model.checkpoint)).absolute())
    return {"defense": config.defense, "model": model, "data": config.data.name}


def _test_set(dataset: Dataset | None, config: RepairConfig) -> TestSet | None:
    if dataset is None:
        return None
    clean = jnp.asarray(dataset.test.images)
    triggered = clean if config.attack.name == "none" else poisoning.trigger(config.attack)(clean)
    return TestSet(clean, triggered, jnp.asarray(dataset.test.labels))


@dataclasses.dataclass(frozen=True)
class _Run:
    """One run's stages: each method says what a stage computes and what it depends on."""

    config: RepairConfig
    directory: Workdir
    network: Network
    like: Variables
    layers: tuple[Layer, ...]
    mesh: Mesh

    def key(self, stage: str) -> jax.Array:
        """The key of a stage: from the seed and the stage's name alone."""
        return jax.random.fold_in(jax.random.key(self.config.seed), zlib.crc32(stage.encode()))

    def network_digest(self) -> str:
        """A hash of what the network computes, so that stages do not outlive a change of its code."""
        images = jax.ShapeDtypeStruct((2, *self.network.image_shape), jnp.float32)
        programs = [
            jax.make_jaxpr(function)(self.like, images) for function in (self.network.apply, self.network.train)
        ]
        return hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", str(programs)).encode()).hexdigest()

    def prepare(self, images: jax.Array) -> jax.Array:
        """uint8 images -> images as the network takes them."""
        return sources.preprocess(images, self.config.data)

    def stage(
        self,
        name: str,
        function: Callable[..., Any],
        inputs: tuple[Any, ...],
        *,
        title: str,
        config: Any,
        parents: tuple[Stage, ...],
        key: jax.Array | None = None,
        total: int = 1,
        unit: str = "step",
    ) -> Stage:
        """Runs (or reloads) a jitted stage `function(*inputs, on_step)` with a progress bar of `total` steps."""

        def compute() -> Any:
            with progress_bar(title, total, unit=unit) as advance:
                placed = parallel.replicate(inputs, self.mesh)
                value = jax.block_until_ready(jax.jit(partial(function, on_step=advance))(*placed))
                jax.effects_barrier()  # the bar's last steps
                return value

        return self.directory.run(
            name,
            compute,
            like=lambda: jax.eval_shape(partial(function, on_step=None), *inputs),
            config=config,
            key=key,
            parents=parents,
        )

    def given_victim(self, variables: Variables) -> Stage:
        """The user's checkpoint, kept as the stage that all others descend from."""
        return self.directory.run(
            "victim", lambda: variables, like=lambda: variables, config=content_digest(variables), key=None
        )

    def trained_victim(self, dataset: Dataset, init: Callable[[jax.Array], Variables]) -> Stage:
        """A victim: the attack poisons the training set, the network is trained on it."""
        assert dataset.train is not None
        train, config, key = dataset.train, self.config, self.key("victim")
        init_key, poison_key, train_key = jax.random.split(key, 3)

        def compute() -> Variables:
            poisoned = poisoning.poison(
                jnp.asarray(train.images), jnp.asarray(train.labels), key=poison_key, config=config.attack
            )
            start, images, labels = parallel.replicate(
                (jax.jit(init)(init_key), poisoned.images, poisoned.labels), self.mesh
            )
            with progress_bar("training the victim", config.training.epochs, unit="epoch") as advance:
                return training.train(
                    self.network,
                    start,
                    images,
                    labels,
                    key=train_key,
                    config=config.training,
                    prepare=self.prepare,
                    mesh=self.mesh,
                    on_epoch=lambda loss: advance(loss=loss),
                )

        settings = {
            "network": self.network_digest(),
            "model": dataclasses.asdict(config.model),
            "data": dataclasses.asdict(config.data) | {"content": content_digest(train)},
            "attack": dataclasses.asdict(config.attack),
            "training": dataclasses.asdict(config.training),
        }
        return self.directory.run("victim", compute, like=lambda: jax.eval_shape(init, key), config=settings, key=key)

    def unlearned(self, victim: Stage) -> Stage:
        """OTBR step 1: random unlearning; noise and batches are split over the devices."""
        config = self.config.otbr.unlearning

        def function(variables: Variables, key: jax.Array, *, on_step: Callable[[], None] | None) -> Any:
            unlearned, info = unlearning.random_unlearning(
                self.network,
                variables,
                key=key,
                config=config,
                place=partial(parallel.split_batch, mesh=self.mesh),
                on_step=on_step,
            )
            return {"variables": unlearned, "info": info}

        key = self.key("unlearned")
        return self.stage(
            "unlearned",
            function,
            (victim.value, key),
            title="unlearning on noise",
            config={"network": self.network_digest(), **dataclasses.asdict(config)},
            key=key,
            parents=(victim,),
            total=config.steps,
        )

    def scores(self, victim: Stage, unlearned: Stage) -> Stage:
        """The neuron weight changes of every layer that is repaired."""
        layers = self.layers

        def function(before: Variables, after: Variables, *, on_step: Any) -> Any:
            return weight_change.neuron_weight_changes(before, after, layers)

        return self.stage(
            "scores",
            function,
            (victim.value, unlearned.value["variables"]),
            title="neuron weight changes",
            config=[layer.name for layer in layers],
            parents=(victim, unlearned),
        )

    def pruned(self, victim: Stage, scores: Stage) -> Stage:
        """OTBR step 2: the share gamma of the neurons that changed most loses its weights."""
        layers, gamma = self.layers, self.config.otbr.gamma
        count = pruning.neurons_to_prune(gamma, sum(layer.neurons for layer in layers))

        def function(variables: Variables, nwc: weight_change.Scores, *, on_step: Any) -> Any:
            pruned, info = pruning.prune(variables, nwc, layers, count=count)
            return {"variables": pruned, "info": info}

        return self.stage(
            "pruned",
            function,
            (victim.value, scores.value),
            title="pruning",
            config={"gamma": gamma, "count": count},
            parents=(victim, scores),
        )

    def fused(self, victim: Stage, scores: Stage, pruned: Stage) -> Stage:
        """OTBR step 3: the pruned network is aligned with the victim by transport, and interpolated."""
        config = self.config.otbr.fusion

        def function(
            variables: Variables, original: Variables, nwc: weight_change.Scores, neurons: Any, *, on_step: Any
        ) -> Any:
            fused, info = fusion.fuse(variables, original, nwc, neurons, self.layers, config=config)
            return {"variables": fused, "info": info}

        inputs = (pruned.value["variables"], victim.value, scores.value, pruned.value["info"].pruned)
        return self.stage(
            "fused", function, inputs, title="transport and fusion", config=config, parents=(victim, scores, pruned)
        )

    def evaluation(self, test: TestSet, stages: Mapping[str, Stage]) -> Stage:
        """Metrics and predictions of all networks, and of the gamma sweep, in one program."""
        config, layers = self.config, self.layers
        total = sum(layer.neurons for layer in layers)
        counts = [pruning.neurons_to_prune(gamma, total) for gamma in config.sweep]
        networks = {
            "victim": stages["victim"].value,
            "unlearned": stages["unlearned"].value["variables"],
            "pruned": stages["pruned"].value["variables"],
            "fused": stages["fused"].value["variables"],
        }

        def function(networks: Any, nwc: weight_change.Scores, test: TestSet, *, on_step: Any) -> Any:
            predictions = {
                name: evaluation.predict_both(self.network, variables, test, prepare=self.prepare, mesh=self.mesh)
                for name, variables in networks.items()
            }
            measured: dict[str, Any] = {
                "predictions": predictions,
                "metrics": {
                    name: evaluation.evaluate_predictions(
                        found.clean, found.triggered, test.labels, target=config.attack.target
                    )
                    for name, found in predictions.items()
                },
            }
            if counts:  # Orbax saves no empty arrays
                measured["sweep"] = evaluation.gamma_sweep(
                    self.network,
                    networks["victim"],
                    nwc,
                    test,
                    layers,
                    counts=jnp.array(counts, jnp.int32),
                    config=config.otbr.fusion,
                    target=config.attack.target,
                    prepare=self.prepare,
                    mesh=self.mesh,
                    on_setting=on_step,
                )
            return measured

        return self.stage(
            "evaluation",
            function,
            (networks, stages["scores"].value, test),
            title="measuring, gamma sweep",
            config={
                "network": self.network_digest(),
                "sweep": counts,
                "fusion": dataclasses.asdict(config.otbr.fusion),
                "target": config.attack.target,
                "data": dataclasses.asdict(config.data) | {"content": content_digest(test)},
            },
            parents=tuple(stages[name] for name in ("victim", "unlearned", "scores", "pruned", "fused")),
            total=len(counts),
            unit="setting",
        )
