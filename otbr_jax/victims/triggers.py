"""The arrays that a trigger consists of: made as a stage, with a clean network if need be, or read from a folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from otbr_jax import plan as plans
from otbr_jax.attacks.attack import Assets, CleanNetwork, Materials
from otbr_jax.attacks.registry import ATTACKS, AttackConfig
from otbr_jax.errors import InputError
from otbr_jax.graph.graph import Layer, NeuronGraph
from otbr_jax.plan import Report, Setup, Shown, Step, needs
from otbr_jax.runs.identity import content_digest
from otbr_jax.runs.orbax_folder import load_variables
from otbr_jax.runs.run import Run, givens
from otbr_jax.runs.store import Stage
from otbr_jax.types import Variables, named_leaves, replace_leaves


def trigger_stage(run: Run, attack: AttackConfig, *, clean: Stage | None = None) -> Stage | None:
    """The stage `attack` with the arrays of an attack's trigger; None if that needs none.

    Args:
      run: the attack may use the training images of its data, or the test images where there are none.
      attack: not `none`.
      clean: a trained clean network, for attacks that are made against one.

    Raises:
      InputError: if the directory `attack.assets` does not hold them, is missing although the network came
        with its weights and so with a trigger of its own, or is set for a trigger without arrays.
    """
    if ATTACKS[attack.name].make is None:
        if attack.assets:
            raise InputError(f"attack.assets: expected none, {attack.name} needs no arrays, found {attack.assets!r}")
        return None
    step, inputs = _attack_step(run, attack, clean)
    if attack.assets:
        needed = {name: inputs[name] for name in step.needs.values()}
        like = jax.eval_shape(partial(plans.compute, step, run.setup), key=run.key("attack"), **needed)
        assets = load_variables(attack.assets, like, name="attack.assets")
        return run.directory.run(
            "attack", lambda: assets, like=lambda: assets, config=content_digest(assets), key=None, code=""
        )
    if run.session.source.variables is not None:
        raise InputError(
            f"attack.assets: expected the directory with the trigger of {attack.name}, which belongs to the network "
            "(launch.train_victim leaves one), found none"
        )
    return run.step(step, {name: givens(name, value) for name, value in inputs.items()})


def _attack_step(run: Run, attack: AttackConfig, clean: Stage | None) -> tuple[Step, dict[str, Any]]:
    """The step that makes the arrays of an attack's trigger, and its inputs."""
    kind, dataset = ATTACKS[attack.name], run.session.dataset
    assert kind.make is not None
    assert dataset is not None
    known = dataset.train or dataset.test
    images, labels = jnp.asarray(known.images), jnp.asarray(known.labels)
    if not kind.needs_images:  # only the shape of images matters
        images, labels = jnp.zeros_like(images[:1]), jnp.zeros_like(labels[:1])
    inputs: dict[str, Any] = {"images": images, "labels": labels}
    if kind.needs_clean_network:
        inputs["clean"] = run.session.source.like if clean is None else clean.value["variables"]

    settings = {"name": attack.name, "settings": attack.own}
    if kind.needs_clean_network:
        settings["target"] = attack.target
    title = f"making {attack.name}"
    make = partial(_make, kind.make, attack.target)
    return Step("attack", make, needs(*inputs), settings, shown=Shown(title, total=kind.steps(attack.own))), inputs


def _make(
    make: Callable[..., Assets], target: int, setup: Setup, settings: Any, *,
    key: jax.Array, report: Report | None, images: jax.Array, labels: jax.Array, clean: Variables | None = None,
) -> Assets:  # fmt: skip
    """The arrays of an attack's trigger."""
    network = None if clean is None else clean_network(setup, clean)
    return make(
        Materials(images, labels, target, network, setup.network.num_classes), key, settings["settings"], report
    )


def classifier(graph: NeuronGraph, num_classes: int) -> Layer:
    """The dense layer that a network ends in; raises InputError if it ends in anything else."""
    layer = graph.layers[-1]
    if layer.kind != "dense" or layer.neurons != num_classes:
        raise InputError(
            "attack.name: expected an attack without a clean network, which needs a dense classifier at the "
            f"network's end, found {layer.name} ({layer.kind})"
        )
    return layer


def clean_network(setup: Setup, variables: Variables) -> CleanNetwork:
    """A clean network as an attacker uses it; see `CleanNetwork`."""
    network = setup.network
    layer, classes = classifier(setup.graph, network.num_classes), network.num_classes
    kernel = named_leaves(variables)[layer.name]
    weights = kernel if layer.neuron_axes == (1,) else kernel.T  # [features, classes]
    order = jnp.argsort(-jnp.sum(jnp.abs(weights), axis=1))[:classes]
    # A classifier that passes features on instead of weighing them, so that no inner layer is needed.
    selector = jax.nn.one_hot(order, len(weights), dtype=weights.dtype).T
    selector = jnp.pad(selector, ((0, 0), (0, classes - selector.shape[1])))
    changed = {layer.name: selector if layer.neuron_axes == (1,) else selector.T}
    changed |= {vector.name: jnp.zeros_like(named_leaves(variables)[vector.name]) for vector in layer.vectors}
    probe = replace_leaves(variables, changed)

    def logits(images: jax.Array) -> jax.Array:
        return network.answer(variables, images)

    def features(images: jax.Array) -> jax.Array:
        return network.answer(probe, images)[:, : len(order)]

    return CleanNetwork(logits, features)
