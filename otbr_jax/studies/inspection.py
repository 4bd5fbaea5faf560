"""What a network's neuron graph looks like, and whether it is right."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from otbr_jax.detectors.detector import Detector, conclude
from otbr_jax.detectors.registry import DETECTORS
from otbr_jax.detectors.registry import detector as detector_named
from otbr_jax.detectors.verdict import in_words
from otbr_jax.errors import InputError
from otbr_jax.files import write_figure
from otbr_jax.graph.choose import choose_layers
from otbr_jax.graph.graph import permutation_error
from otbr_jax.paths import local_path
from otbr_jax.report.network import draw_network, network_table
from otbr_jax.report.verdict import draw_triggers
from otbr_jax.runs import hosts
from otbr_jax.runs.devices import batch_mesh
from otbr_jax.runs.identify import named
from otbr_jax.runs.networks import Subject, check_classes, open_network
from otbr_jax.runs.numerics import as_usual
from otbr_jax.runs.run import Run
from otbr_jax.runs.store import open_workdir
from otbr_jax.studies.detection import given_clean
from otbr_jax.types import Variables, named_leaves
from otbr_jax.victims.victims import open_victim, subject_of

DRAWINGS = (".png", ".svg", ".pdf")
TOLERANCE = 1e-3  # of the largest logit; rounding stays well below it


@as_usual()
def inspect(
    config: Any,
    *,
    drawing: str | os.PathLike[str] | None = None,
    verify: bool = False,
    judge_in: str | os.PathLike[str] | None = None,
    detector: str = "",
    devices: Sequence[jax.Device] | None = None,
) -> str:
    """The table of a network's layers, which of them OTBR would repair, and what else was asked for.

    Args:
      config: names the network (`config.model`) and the layers to repair.
      drawing: a file for a picture of the graph; its suffix is one of `DRAWINGS`.
      verify: whether to permute every group of neurons and measure how far the outputs move.
      judge_in: a working directory, to ask whether the network is backdoored; the picture of triggers stays there.
      detector: the name of the detector that is asked; empty for the defence's own. One that needs clean images takes
        those that `config.clean` names.
      devices: the devices that share the detector's steps; by default all there are.

    Raises:
      InputError: if the network cannot be opened or traced, a permuted group moves its outputs, or the picture cannot
        be written.
    """
    picture = None if drawing is None else local_path(drawing, name="--out")
    if picture is not None and picture.suffix not in DRAWINGS:
        raise InputError(f"--out: expected a name that ends in one of {', '.join(DRAWINGS)}, found {str(drawing)!r}")
    config = dataclasses.replace(config, model=named(config.model))
    subject = open_network(config.model)
    shapes = {name: tuple(leaf.shape) for name, leaf in named_leaves(subject.like).items()}
    layers = choose_layers(subject.graph, config.way.layers(config))
    kinds = ", ".join(sorted({layer.kind for layer in layers}))
    lines = [
        network_table(subject.graph, shapes).text(),
        f"repaired: {len(layers)} layers ({kinds}) with {sum(layer.neurons for layer in layers):,} neurons",
    ]
    if verify:
        lines.append(_verified(subject))
    if judge_in is not None:
        lines.append(_detected(config, subject, judge_in, detector, devices))
    if picture is not None and hosts.is_first():
        write_figure(picture, draw_network(subject.graph, title=config.model.name), name="--out", dpi=150)
        lines.append(f"drawn in {drawing}")
    return "\n".join(lines)


def _detected(
    config: Any,
    subject: Subject,
    workdir: str | os.PathLike[str],
    name: str,
    devices: Sequence[jax.Device] | None,
) -> str:
    if subject.variables is None:
        raise InputError("model.checkpoint: expected a network to ask about, found none; random weights hide nothing")
    check_classes(subject.network)
    chosen, own = detector_of(config, name)
    clean = given_clean(config, chosen, subject.network)
    with open_workdir(workdir, subject=subject_of(config)) as directory:
        layers, repetition = config.way.layers(config), config.repetition
        run = Run(config, directory, subject, batch_mesh(devices), layers=layers, repetition=repetition)
        given = {"victim": open_victim(run, None).stage.value["variables"], **clean}
        values = {name: stage.value for name, stage in run.plan(chosen.plan(own), given).items()}
        verdict = conclude(chosen, own, values)
        if verdict.triggers is None:
            return in_words(verdict)
        picture = directory.path / "triggers.png"
        if hosts.is_first():
            write_figure(picture, draw_triggers(verdict, verdict.triggers), name="--judge", dpi=150)
    return f"{in_words(verdict)}\ntriggers drawn in {picture}"


def detector_of(config: Any, name: str) -> tuple[Detector, Any]:
    """The detector of that name, or the defence's own, with its settings: the defence's where it shares them."""
    if name:
        chosen = detector_named(name)
        return chosen, config if isinstance(config, chosen.Config) else chosen.Config()
    chosen = config.way.detector(config)
    if chosen is None:
        raise InputError(
            "defense: expected one that looks for a backdoor, as that of configs/own_network.py does, found "
            f"{config.defense!r} with settings that do not; or name a --detector, one of {[*DETECTORS]}"
        )
    return chosen, config


def _verified(subject: Subject) -> str:
    if not subject.graph.groups:
        return "nothing to verify: the neuron graph states no groups of neurons that may change places"
    network = subject.network
    variables = _random(subject.like) if subject.variables is None else subject.variables
    images = jax.random.uniform(jax.random.key(1), (4, *network.image_shape))
    apply = jax.jit(network.apply)
    errors = [
        float(permutation_error(apply, variables, group, images, key=jax.random.key(index)))
        for index, group in enumerate(subject.graph.groups)
    ]
    for group, error in zip(subject.graph.groups, errors, strict=True):
        if not error < TOLERANCE:
            where = ", ".join(f"{axis.name} axis {axis.axis}" for axis in group.axes[:3])
            raise InputError(
                f"network: the neuron graph is wrong: permuting {group.size} neurons (on {where}, ...) moves the "
                f"outputs by {error:.1e} of the largest; state the neuron graph by hand"
            )
    weights = "random weights" if subject.variables is None else "its own weights"
    return (
        f"verified with {weights}: permuting each of {len(errors)} groups moves the outputs by at most "
        f"{max(errors):.1e} of the largest"
    )


def _random(like: Variables) -> Variables:
    """Random values everywhere, since equal ones (BatchNorm's zeros and ones) hide mistakes."""
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(jax.random.key(0), len(leaves))

    def draw(key: jax.Array, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.size > max(leaf.shape, default=0):
            return jax.random.normal(key, leaf.shape, leaf.dtype) / np.sqrt(np.prod(leaf.shape[:-1]))
        return jax.random.uniform(key, leaf.shape, leaf.dtype, minval=0.2, maxval=1.0)

    return jax.tree.unflatten(structure, [draw(key, leaf) for key, leaf in zip(keys, leaves, strict=True)])
