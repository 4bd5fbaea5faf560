"""Victims: an attack is made, it poisons a training set or the training, and a network is trained."""

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
from otbr_jax.data.sources import Images
from otbr_jax.errors import InputError
from otbr_jax.metrics import Metrics, evaluate_predictions
from otbr_jax.runs.code import code_digest
from otbr_jax.runs.devices import check_batch_size, replicate
from otbr_jax.runs.identity import content_digest, program_digest
from otbr_jax.runs.progress import progress_bar
from otbr_jax.runs.provenance import hardware
from otbr_jax.runs.run import Run
from otbr_jax.runs.session import Session
from otbr_jax.runs.store import Stage
from otbr_jax.steps.predictions import predict
from otbr_jax.types import Variables
from otbr_jax.victims import training
from otbr_jax.victims.evaluation import TestSet
from otbr_jax.victims.training import TrainingConfig, TrainingSet
from otbr_jax.victims.triggers import classifier, clean_network, trigger_stage


class Victim(NamedTuple):
    """A victim that was trained here, or a user's network with a known trigger.

    Attributes:
      stages: `attack` if the trigger needs arrays, `clean` if the attack was made against a clean network, `victim`.
      attack: its backdoor, if it is known.
      trigger: puts the attack's trigger on images; None without an attack.
    """

    stages: Mapping[str, Stage]
    attack: AttackConfig
    trigger: Trigger | None

    @property
    def stage(self) -> Stage:
        """The stage `victim`, whose value holds `variables`."""
        return self.stages["victim"]

    @property
    def variables(self) -> Variables:
        """Its weights and statistics."""
        variables: Variables = self.stage.value["variables"]
        return variables


def check_trainable(session: Session, attack: AttackConfig, recipe: TrainingConfig) -> None:
    """Raises InputError, before anything is written, if a network without weights cannot be trained as a victim."""
    if session.source.variables is not None:
        return
    check_batch_size(recipe.batch_size, session.mesh, name="training.batch_size")
    dataset = session.dataset
    if dataset is None or dataset.train is None:
        raise InputError(
            f"model.checkpoint: expected a checkpoint, since data {session.data.name!r} holds no training images "
            "for a victim; found none"
        )
    labels = dataset.train.labels
    training.check_batch_fits(recipe, images=len(labels))
    if attack.name != "none":
        poisoning.check_possible(labels, attack)


def open_victim(run: Run, attack: AttackConfig, recipe: TrainingConfig) -> Victim:
    """The network of a run: the user's checkpoint, or a victim trained here.

    Raises:
      InputError: if there is no checkpoint and nothing to train on, or the attack's trigger is unknown.
    """
    check_trainable(run.session, attack, recipe)
    if run.session.source.variables is None:
        return _trained(run, attack, recipe)
    stage = checkpoint_stage(run)
    if run.session.dataset is None or attack.name == "none":
        return Victim({"victim": stage}, attack, None)
    made = trigger_stage(run, attack)
    known = {} if made is None else {"attack": made}
    return Victim(known | {"victim": stage}, attack, trigger(attack, made.value if made else {}))


def checkpoint_stage(run: Run) -> Stage:
    """The stage `victim` of a network that came with its weights."""
    variables = run.session.source.variables
    return run.directory.run(
        "victim",
        lambda: {"variables": variables},
        like=lambda: {"variables": variables},
        config=content_digest(variables),
        key=None,
        code="",
    )


def test_set(run: Run, victim: Victim) -> TestSet:
    """The test images, clean and with the victim's trigger, and the classes that the attacker wants.

    Raises InputError if there are no images.
    """
    dataset = run.session.dataset
    if dataset is None:
        raise InputError("data.name: expected images to measure with, found 'none'")
    clean, labels = jnp.asarray(dataset.test.images), jnp.asarray(dataset.test.labels)
    triggered = clean
    if victim.trigger is not None:
        triggered = poisoning.apply_trigger(victim.trigger, clean, key=run.key("trigger"))
    return TestSet(clean, triggered, labels, attacker_goals(victim.attack, labels, run.network.num_classes))


def attacker_goals(attack: AttackConfig, labels: jax.Array, num_classes: int) -> jax.Array:
    """The classes that the attacker wants images of these labels to be predicted as, int32 `[n]`."""
    return goals(labels, mode=attack.label_mode, target=attack.target, num_classes=num_classes)


def _trained(run: Run, attack: AttackConfig, recipe: TrainingConfig) -> Victim:
    """The attack is made (against a clean network of the same training, if it needs one) and the victim trained."""
    if attack.name == "none":
        return Victim({"victim": clean_victim(run, recipe)}, attack, None)
    stages: dict[str, Stage] = {}
    kind = ATTACKS[attack.name]
    if kind.needs_clean_network and (kind.poison is not None or not attack.assets):
        classifier(run.session.source.graph, run.network.num_classes)
        stages["clean"] = clean_victim(run, recipe)
    made = trigger_stage(run, attack, clean=stages.get("clean"))
    if made is not None:
        stages["attack"] = made
    clean = stages.get("clean") if kind.poison else None
    stages["victim"] = _victim_stage(run, attack, recipe, made, clean=clean)
    return Victim(stages, attack, trigger(attack, stages["victim"].value.get("assets", {})))


def clean_victim(run: Run, recipe: TrainingConfig) -> Stage:
    """The clean network with the same images, order and start as the victim's, for attackers and comparisons.

    It is the victim of the attack `none`, trained once for each seed of a working directory.
    """
    return _victim_stage(run, AttackConfig(name="none"), recipe, None)


def _victim_stage(
    run: Run, attack: AttackConfig, recipe: TrainingConfig, made: Stage | None, *, clean: Stage | None = None
) -> Stage:
    """The stage `victim`; `clean` is the clean network that training images are poisoned with, if they are."""
    source, dataset, key = run.session.source, run.session.dataset, run.key("victim")
    assert dataset is not None
    assert dataset.train is not None
    assert source.init is not None
    train, init, assets = dataset.train, source.init, made.value if made else {}
    init_key, poison_key, train_key = jax.random.split(key, 3)
    precision = str(training.compute_dtype(recipe.precision, run.mesh))
    kind = ATTACKS.get(attack.name)

    def compute(progress: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
        data, in_training, poisoned = _training_set(kind, run, attack, train, assets, poison_key, clean)
        start, data, placed, key = replicate((jax.jit(init)(init_key), data, dict(assets), train_key), run.mesh)
        title = "training a clean network" if attack.name == "none" else f"training: {attack.name}"
        with progress_bar(title, recipe.epochs, unit="epoch") as advance:
            trained = training.train(
                run.shared_network, start, data, key=key, config=recipe, mesh=run.mesh,
                assets=placed, attack=in_training, measure=_measure(kind, run, attack, dataset.test),
                on_epoch=advance,
                progress=progress,
            )  # fmt: skip
        value = {"variables": trained.variables, "history": trained.history._asdict(), "poisoned": np.int32(poisoned)}
        if trained.assets:  # Orbax saves no empty trees
            value["assets"] = trained.assets
        speed = trained.images_per_second
        notes = {"seconds": round(trained.seconds, 2), "images_per_second": None if speed is None else round(speed, 1)}
        return value, notes | {"precision": precision, "hardware": hardware()}

    def like() -> dict[str, Any]:
        value = {"variables": jax.eval_shape(init, key), "poisoned": np.int32(0)}
        value["history"] = training.empty_history(recipe)._asdict()
        return value | ({"assets": assets} if assets else {})

    settings = {
        "network": run.network_digest,
        "init": program_digest(init, key),
        "model": dataclasses.asdict(source.config),
        "data": [content_digest(train), content_digest(dataset.test), run.session.data.mean, run.session.data.std],
        "attack": attack.settings(),
        "training": dataclasses.asdict(recipe) | {"precision": precision},
    }
    parents = tuple(stage for stage in (made, clean) if stage)
    return run.directory.run_long(
        "victim",
        compute,
        like=like,
        config=settings,
        key=key,
        parents=parents,
        # Of this attack alone: changing another attack retrains no victim.
        code=code_digest(kind, training.train, _training_set, _measure),
    )


def _training_set(
    kind: Attack | None,
    run: Run,
    attack: AttackConfig,
    train: Images,
    assets: Assets,
    key: jax.Array,
    clean: Stage | None,
) -> tuple[TrainingSet, InTraining | None, int]:
    """The data to learn from, what the attack does in training, and how many images (of an epoch) are poisoned."""
    images, labels = jnp.asarray(train.images), jnp.asarray(train.labels)
    goal_labels = attacker_goals(attack, labels, run.network.num_classes)
    if kind is None:
        return TrainingSet(images, labels, goal_labels), None, 0
    if kind.in_training is not None:
        count = poisoning.poisoned_count(len(labels), attack)
        return TrainingSet(images, labels, goal_labels), kind.in_training(attack.poisoning_ratio, attack.own), count
    network = None if clean is None else clean_network(run.setup, clean.value["variables"])
    poisoned = poisoning.poison(
        images, labels, trigger_of(kind, attack.own, assets), key=key, config=attack,
        num_classes=run.network.num_classes,
        change=poisoner(kind, attack.own, assets, network) if kind.poison is not None else None,
    )  # fmt: skip
    return TrainingSet(poisoned.images, poisoned.labels, goal_labels), None, int(poisoned.poisoned.sum())


def _measure(
    kind: Attack | None, run: Run, attack: AttackConfig, test: Images
) -> Callable[[Variables, Assets], Metrics]:
    """ACC and ASR of a network under training; ASR is NaN without an attack."""
    network = run.shared_network
    images, labels, key = replicate((test.images, test.labels, run.key("trigger")), run.mesh)

    @jax.jit
    def measure(variables: Variables, assets: Assets, images: jax.Array, labels: jax.Array) -> Metrics:
        clean = predict(network, variables, images)
        if kind is None:
            return Metrics(jnp.mean(clean == labels), jnp.nan, jnp.nan)  # type: ignore[arg-type]
        put = trigger_of(kind, attack.own, assets)
        with_trigger = dataclasses.replace(network, prepare=lambda batch: network.prepare(put(batch, key)))
        triggered = predict(with_trigger, variables, images)
        goal_labels = attacker_goals(attack, labels, run.network.num_classes)
        return evaluate_predictions(clean, triggered, labels, target=goal_labels)

    return lambda variables, assets: measure(variables, assets, images, labels)
