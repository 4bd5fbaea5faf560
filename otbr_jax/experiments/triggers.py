"""The arrays that a trigger consists of: made as a stage, against a clean network if need be, or read from a folder."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from otbr_jax.attacks.attack import Assets, CleanNetwork, Materials
from otbr_jax.attacks.registry import ATTACKS
from otbr_jax.data.sources import Dataset
from otbr_jax.errors import InputError
from otbr_jax.runs.checkpoints import load_variables
from otbr_jax.runs.run import Run
from otbr_jax.runs.store import Stage, content_digest
from otbr_jax.neuron_graph import Layer
from otbr_jax.types import Variables, named_leaves, replace_leaves


def trigger_stage(run: Run, dataset: Dataset, *, clean: Stage | None = None) -> Stage | None:
    """The stage `attack` with the arrays of the run's trigger; None if that needs none.

    Args:
      run: its attack is not `none`.
      dataset: its training images, or where it has none its test images, are what the attack may look at.
      clean: a trained clean network, for attacks that are made against one.

    Raises:
      InputError: if the directory `attack.assets` does not hold them, is missing where the network came with its
        weights and so with a trigger of its own, or is given for a trigger without arrays.
    """
    config, attack = run.config.attack, ATTACKS[run.config.attack.name]
    if attack.make is None:
        if config.assets:
            raise InputError(f"attack.assets: expected none, {config.name} needs no arrays, found {config.assets!r}")
        return None
    images, key = dataset.train or dataset.test, run.key("attack")

    def function(images: jax.Array, labels: jax.Array, key: jax.Array, variables: Any, *, on_step: Any) -> Assets:
        network = None if variables is None else _clean_network(run, variables)
        materials = Materials(images, labels, config.target, network)
        return attack.make(materials, key, config.own, on_step)  # type: ignore[misc]

    if config.assets:
        variables = run.subject.like if attack.needs_clean_network else None
        like = jax.eval_shape(lambda *args: function(*args, on_step=None), *images, key, variables)
        assets = load_variables(config.assets, like, name="attack.assets")
        return run.directory.run(
            "attack", lambda: assets, like=lambda: assets, config=content_digest(assets), key=None, code=__name__
        )
    if run.subject.variables is not None:
        raise InputError(
            f"attack.assets: expected the directory with the trigger of {config.name}, which belongs to the network "
            "(launch.train_victim leaves one), found none"
        )
    settings: dict[str, Any] = {"name": config.name, "settings": dataclasses.asdict(config.own)}
    if attack.needs_clean_network:
        settings |= {"target": config.target, "network": run.network_digest()}
    settings["data"] = content_digest(images) if attack.needs_images else list(run.network.image_shape)
    return run.stage(
        "attack",
        function,
        (jnp.asarray(images.images), jnp.asarray(images.labels), key, clean.value["variables"] if clean else None),
        title=f"making {config.name}",
        config=settings,
        key=key,
        parents=(clean,) if clean else (),
        total=attack.steps(config.own),
    )


def classifier(run: Run) -> Layer:
    """The dense layer that the network ends in; raises InputError if it ends in anything else."""
    layer = run.subject.graph.layers[-1]
    if layer.kind != "dense" or layer.neurons != run.network.num_classes:
        raise InputError(
            f"attack.name: {run.config.attack.name} expects a network that ends in a dense classifier, "
            f"found {layer.name} ({layer.kind})"
        )
    return layer


def _clean_network(run: Run, variables: Variables) -> CleanNetwork:
    """A clean network as an attacker uses it; see `CleanNetwork`."""
    layer, classes = classifier(run), run.network.num_classes
    kernel = named_leaves(variables)[layer.name]
    weights = kernel if layer.neuron_axes == (1,) else kernel.T  # [features, classes]
    order = jnp.argsort(-jnp.sum(jnp.abs(weights), axis=1))[:classes]
    # A classifier that passes features on instead of weighing them: no layer has to be looked into.
    passing = jax.nn.one_hot(order, len(weights), dtype=weights.dtype).T
    passing = jnp.pad(passing, ((0, 0), (0, classes - passing.shape[1])))
    changed = {layer.name: passing if layer.neuron_axes == (1,) else passing.T}
    changed |= {vector.name: jnp.zeros_like(named_leaves(variables)[vector.name]) for vector in layer.vectors}
    probe = replace_leaves(variables, changed)

    def logits(images: jax.Array) -> jax.Array:
        return run.network.apply(variables, run.prepare(images))

    def features(images: jax.Array) -> jax.Array:
        return run.network.apply(probe, run.prepare(images))[:, : len(order)]

    return CleanNetwork(logits, features)
