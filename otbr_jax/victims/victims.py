"""Victims: an attack is made, gets into a training set or the training, and a network learns it."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.attacks import poisoning
from otbr_jax.attacks.attack import Assets, Attack, InTraining, Trigger, goals
from otbr_jax.attacks.registry import ATTACKS, AttackConfig, poisoner, trigger, trigger_of
from otbr_jax.data.sources import Dataset, Images
from otbr_jax.errors import InputError
from otbr_jax.metrics import Metrics, evaluate_predictions
from otbr_jax.paths import local_path
from otbr_jax.runs.code import code_digest
from otbr_jax.runs.devices import replicate
from otbr_jax.runs.identity import content_digest, program_digest
from otbr_jax.runs.networks import Subject
from otbr_jax.runs.progress import progress_bar
from otbr_jax.runs.provenance import hardware
from otbr_jax.runs.run import Run
from otbr_jax.runs.store import Stage
from otbr_jax.steps.answers import answers
from otbr_jax.types import Variables
from otbr_jax.victims import training
from otbr_jax.victims.config import VictimConfig
from otbr_jax.victims.evaluation import TestSet
from otbr_jax.victims.training import TrainingSet
from otbr_jax.victims.triggers import classifier, clean_network, trigger_stage


class Victim(NamedTuple):
    """A victim as it was trained, or as it came.

    Attributes:
      stages: `attack` if the trigger needs arrays, `clean` if the attack was made against a clean network, `victim`.
      trigger: puts the attack's trigger on images; None without an attack.
    """

    stages: Mapping[str, Stage]
    trigger: Trigger | None

    @property
    def stage(self) -> Stage:
        """The stage `victim`, whose value holds `variables`."""
        return self.stages["victim"]


def check_trainable(config: VictimConfig, subject: Subject, dataset: Dataset | None) -> None:
    """Raises InputError, before anything is written, if a network without weights cannot be made a victim of."""
    if subject.variables is not None:
        return
    if dataset is None or dataset.train is None:
        raise InputError(
            f"model.checkpoint: expected a checkpoint, since data {config.data.name!r} holds no training images "
            "for a victim; found none"
        )
    labels = dataset.train.labels
    training.check_batch_fits(config.training, images=len(labels))
    if config.attack.name != "none":
        poisoning.check_possible(labels, config.attack)


def subject_of(config: VictimConfig) -> dict[str, Any]:
    """What a working directory is about; the rest of the settings may change from run to run.

    A network that was brought may be measured later, on images that were not there at first.
    """
    model = dataclasses.asdict(config.model)
    if not config.model.entry:  # as directories from before there was this setting have it
        del model["entry"]
    if config.model.checkpoint:
        model["checkpoint"] = str(local_path(config.model.checkpoint, name="model.checkpoint"))
    return {"model": model} if config.model.checkpoint else {"model": model, "data": config.data.name}


def open_victim(run: Run, dataset: Dataset | None) -> Victim:
    """The network of a run: the user's checkpoint, or a victim trained for the purpose.

    Raises:
      InputError: if there is no checkpoint and nothing to train on, or the attack's trigger is not known.
    """
    config, variables = run.config, run.subject.variables
    check_trainable(config, run.subject, dataset)
    if variables is None:
        assert dataset is not None
        return _trained(run, dataset)
    stage = run.directory.run(
        "victim",
        lambda: {"variables": variables},
        like=lambda: {"variables": variables},
        config=content_digest(variables),
        key=None,
        code="",
    )
    if dataset is None or config.attack.name == "none":
        return Victim({"victim": stage}, None)
    attack = trigger_stage(run, dataset)
    known = {} if attack is None else {"attack": attack}
    return Victim(known | {"victim": stage}, trigger(config.attack, attack.value if attack else {}))


def test_set(run: Run, test: Images, victim: Victim) -> TestSet:
    """The test images, clean and with the victim's trigger, and what the attacker wants of each."""
    clean, labels = jnp.asarray(test.images), jnp.asarray(test.labels)
    triggered = clean
    if victim.trigger is not None:
        triggered = poisoning.apply_trigger(victim.trigger, clean, key=run.key("trigger"))
    return TestSet(clean, triggered, labels, attacker_goals(run.config.attack, labels, run.network.num_classes))


def attacker_goals(attack: AttackConfig, labels: jax.Array, num_classes: int) -> jax.Array:
    """What the attacker wants images of these labels to be answered with, int32 `[n]`."""
    return goals(labels, mode=attack.label_mode, target=attack.target, num_classes=num_classes)


def _trained(run: Run, dataset: Dataset) -> Victim:
    """The attack is made (against a clean network of the same training, if it needs one) and the victim trained."""
    config, train = run.config, dataset.train
    assert train is not None
    if config.attack.name == "none":
        return Victim({"victim": _victim_stage(run, dataset, None)}, None)
    stages: dict[str, Stage] = {}
    made = ATTACKS[config.attack.name]
    if made.needs_clean_network and (made.poison is not None or not config.attack.assets):
        classifier(run.subject.graph, run.network.num_classes)
        stages["clean"] = without_backdoor(run, dataset)
    attack = trigger_stage(run, dataset, clean=stages.get("clean"))
    if attack is not None:
        stages["attack"] = attack
    stages["victim"] = _victim_stage(run, dataset, attack, clean=stages.get("clean") if made.poison else None)
    return Victim(stages, trigger(config.attack, stages["victim"].value.get("assets", {})))


def without_backdoor(run: Run, dataset: Dataset) -> Stage:
    """The clean network of the same images, order and start as the victim's, which attackers and comparisons want.

    It is the victim of the attack `none`, trained once for each seed of a working directory.
    """
    without = dataclasses.replace(run.config, attack=AttackConfig(name="none"))
    return _victim_stage(dataclasses.replace(run, config=without), dataset, None)


def _victim_stage(run: Run, dataset: Dataset, attack: Stage | None, *, clean: Stage | None = None) -> Stage:
    """The stage `victim`; `clean` is the clean network that training images are poisoned with, if they are."""
    config, train, key = run.config, dataset.train, run.key("victim")
    assert train is not None
    assert run.subject.init is not None
    init, assets = run.subject.init, attack.value if attack else {}
    init_key, poison_key, train_key = jax.random.split(key, 3)
    precision = str(training.compute_dtype(config.training.precision, run.mesh))
    made = ATTACKS.get(config.attack.name)

    def compute(progress: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
        data, in_training, poisoned = _training_set(made, run, train, assets, poison_key, clean)
        start, data, placed, key = replicate((jax.jit(init)(init_key), data, dict(assets), train_key), run.mesh)
        title = "training a clean network" if config.attack.name == "none" else f"training: {config.attack.name}"
        with progress_bar(title, config.training.epochs, unit="epoch") as advance:
            found = training.train(
                run.shared_network, start, data, key=key, config=config.training, mesh=run.mesh,
                assets=placed, attack=in_training, measure=_measure(made, run, dataset.test), on_epoch=advance,
                progress=progress,
            )  # fmt: skip
        value = {"variables": found.variables, "history": found.history._asdict(), "poisoned": np.int32(poisoned)}
        if found.assets:  # Orbax saves no empty trees
            value["assets"] = found.assets
        speed = found.images_per_second
        notes = {"seconds": round(found.seconds, 2), "images_per_second": None if speed is None else round(speed, 1)}
        return value, notes | {"precision": precision, "hardware": hardware()}

    def like() -> dict[str, Any]:
        value = {"variables": jax.eval_shape(init, key), "poisoned": np.int32(0)}
        value["history"] = training.empty_history(config.training)._asdict()
        return value | ({"assets": assets} if assets else {})

    settings = {
        "network": run.network_digest,
        "init": program_digest(init, key),
        "model": dataclasses.asdict(config.model),
        "data": [content_digest(train), content_digest(dataset.test), config.data.mean, config.data.std],
        "attack": config.attack.settings(),
        "training": dataclasses.asdict(config.training) | {"precision": precision},
    }
    parents = tuple(stage for stage in (attack, clean) if stage)
    return run.directory.run_long(
        "victim",
        compute,
        like=like,
        config=settings,
        key=key,
        parents=parents,
        # Of this attack alone: a change of another one trains no victim anew.
        code=code_digest(made, training.train, _training_set, _measure),
    )


def _training_set(
    attack: Attack | None, run: Run, train: Images, assets: Assets, key: jax.Array, clean: Stage | None
) -> tuple[TrainingSet, InTraining | None, int]:
    """The data to learn from, what the attack does in training, and how many images (of an epoch) are poisoned."""
    config, images, labels = run.config.attack, jnp.asarray(train.images), jnp.asarray(train.labels)
    wanted = attacker_goals(config, labels, run.network.num_classes)
    if attack is None:
        return TrainingSet(images, labels, wanted), None, 0
    if attack.in_training is not None:
        count = poisoning.poisoned_count(len(labels), config)
        return TrainingSet(images, labels, wanted), attack.in_training(config.poisoning_ratio, config.own), count
    network = None if clean is None else clean_network(run.setup, clean.value["variables"])
    poisoned = poisoning.poison(
        images, labels, trigger_of(attack, config.own, assets), key=key, config=config,
        num_classes=run.network.num_classes,
        change=poisoner(attack, config.own, assets, network) if attack.poison is not None else None,
    )  # fmt: skip
    return TrainingSet(poisoned.images, poisoned.labels, wanted), None, int(poisoned.poisoned.sum())


def _measure(made: Attack | None, run: Run, test: Images) -> Callable[[Variables, Assets], Metrics]:
    """ACC and ASR of a network under training; ASR is NaN without an attack."""
    config, network = run.config.attack, run.shared_network
    images, labels, key = replicate((test.images, test.labels, run.key("trigger")), run.mesh)

    @jax.jit
    def measure(variables: Variables, assets: Assets, images: jax.Array, labels: jax.Array) -> Metrics:
        clean = answers(network, variables, images)
        if made is None:
            return Metrics(jnp.mean(clean == labels), jnp.nan, jnp.nan)  # type: ignore[arg-type]
        put = trigger_of(made, config.own, assets)
        with_trigger = dataclasses.replace(network, prepare=lambda batch: network.prepare(put(batch, key)))
        triggered = answers(with_trigger, variables, images)
        wanted = attacker_goals(config, labels, run.network.num_classes)
        return evaluate_predictions(clean, triggered, labels, target=wanted)

    return lambda variables, assets: measure(variables, assets, images, labels)
