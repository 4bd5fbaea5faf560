"""Inspects a network: its neuron graph, whether that is correct, and whether the network is backdoored."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from otbr_jax.defenses.registry import defense
from otbr_jax.detectors.detector import Detector, conclude
from otbr_jax.detectors.registry import DETECTORS
from otbr_jax.detectors.registry import detector as registered_detector
from otbr_jax.detectors.verdict import in_words
from otbr_jax.errors import InputError
from otbr_jax.files import write_figure
from otbr_jax.graph.choose import choose_layers
from otbr_jax.graph.graph import permutation_error
from otbr_jax.paths import local_path
from otbr_jax.report.network import draw_network, network_table
from otbr_jax.report.verdict import draw_triggers
from otbr_jax.runs import hosts
from otbr_jax.runs.networks import Source, open_network
from otbr_jax.runs.numerics import default_numerics
from otbr_jax.runs.run import Run
from otbr_jax.runs.session import session_of
from otbr_jax.studies.detection import clean_inputs
from otbr_jax.studies.repair_config import RepairConfig
from otbr_jax.types import Variables, named_leaves
from otbr_jax.victims.victims import checkpoint_stage

DRAWINGS = (".png", ".svg", ".pdf")
TOLERANCE = 1e-3  # of the largest logit; rounding stays well below it


@default_numerics()
def inspect(
    config: RepairConfig,
    *,
    drawing: str | os.PathLike[str] | None = None,
    verify: bool = False,
    detect_in: str | os.PathLike[str] | None = None,
    detector: str = "",
    devices: Sequence[jax.Device] | None = None,
) -> str:
    """The table of a network's layers, those that OTBR would repair, and the results of the other arguments, as text.

    Args:
      config: names the network (`model`) and the layers to repair.
      drawing: a file for a drawing of the graph; its suffix is one of `DRAWINGS`.
      verify: whether to permute every group of neurons and measure how far the outputs change.
      detect_in: a working directory, to run a detector in; a figure of the triggers is written there.
      detector: the name of the detector; empty for the defence's own. One that needs clean images takes those that
        `config.clean` names.
      devices: the devices that share the detector's steps; by default all there are.

    Raises:
      InputError: if the network cannot be opened or traced, a permuted group changes its outputs, or the drawing cannot
        be written.
    """
    figure = None if drawing is None else local_path(drawing, name="--out")
    if figure is not None and figure.suffix not in DRAWINGS:
        raise InputError(f"--out: expected a name that ends in one of {', '.join(DRAWINGS)}, found {str(drawing)!r}")
    source = open_network(config.victim.model)
    shapes = {name: tuple(leaf.shape) for name, leaf in named_leaves(source.like).items()}
    layers = choose_layers(source.graph, defense(config.defense).layers(config.method))
    kinds = ", ".join(sorted({layer.kind for layer in layers}))
    lines = [
        network_table(source.graph, shapes).text(),
        f"repaired: {len(layers)} layers ({kinds}) with {sum(layer.neurons for layer in layers):,} neurons",
    ]
    if verify:
        lines.append(_verify(source))
    if detect_in is not None:
        lines.append(_detect(config, source, detect_in, detector, devices))
    if figure is not None and hosts.is_first():
        write_figure(figure, draw_network(source.graph, title=source.config.name), name="--out", dpi=150)
        lines.append(f"drawn in {drawing}")
    return "\n".join(lines)


def _detect(
    config: RepairConfig,
    source: Source,
    workdir: str | os.PathLike[str],
    name: str,
    devices: Sequence[jax.Device] | None,
) -> str:
    if source.variables is None:
        raise InputError("model.checkpoint: expected a trained network, found none; random weights hide no backdoor")
    session = session_of(source, config.victim.data, devices=devices)
    detector, settings = choose_detector(config, name)
    clean = clean_inputs(session, detector, config.clean, seed=config.clean_seed)
    with session.directory(workdir) as directory:
        layers = defense(config.defense).layers(config.method)
        run = Run(session, directory, config.victim.seed, layers=layers, repetition=config.repetition)
        inputs = {"victim": checkpoint_stage(run).value["variables"], **clean}
        values = {name: stage.value for name, stage in run.plan(detector.plan(settings), inputs).items()}
        verdict = conclude(detector, settings, values)
        if verdict.triggers is None:
            return in_words(verdict)
        figure = directory.path / "triggers.png"
        if hosts.is_first():
            write_figure(figure, draw_triggers(verdict, verdict.triggers), name="--detect", dpi=150)
    return f"{in_words(verdict)}\ntriggers drawn in {figure}"


def choose_detector(config: RepairConfig, name: str) -> tuple[Detector, Any]:
    """The detector of that name, or the defence's own, with its settings: those of the defence if it has them."""
    if name:
        detector = registered_detector(name)
        return detector, config.method if isinstance(config.method, detector.Config) else detector.Config()
    own = defense(config.defense).detector(config.method)
    if own is None:
        raise InputError(
            "defense: expected one with a detector, such as that of configs/own_network.py, found "
            f"{config.defense!r} with settings that run none; or name a --detector, one of {[*DETECTORS]}"
        )
    return own, config.method


def _verify(source: Source) -> str:
    if not source.graph.groups:
        return "nothing to verify: the neuron graph has no groups of neurons that can be permuted"
    network = source.network
    variables = _random(source.like) if source.variables is None else source.variables
    images = jax.random.uniform(jax.random.key(1), (4, *network.image_shape))
    apply = jax.jit(network.apply)
    errors = [
        float(permutation_error(apply, variables, group, images, key=jax.random.key(index)))
        for index, group in enumerate(source.graph.groups)
    ]
    for group, error in zip(source.graph.groups, errors, strict=True):
        if not error < TOLERANCE:
            where = ", ".join(f"{axis.name} axis {axis.axis}" for axis in group.axes[:3])
            raise InputError(
                f"network: the neuron graph is wrong: permuting {group.size} neurons (on {where}, ...) changes the "
                f"outputs by {error:.1e} of the largest; state the neuron graph by hand"
            )
    weights = "random weights" if source.variables is None else "its own weights"
    return (
        f"verified with {weights}: permuting each of {len(errors)} groups changes the outputs by at most "
        f"{max(errors):.1e} of the largest"
    )


def _random(like: Variables) -> Variables:
    """Random variables, since constant ones (BatchNorm's zeros and ones) would hide mistakes."""
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(jax.random.key(0), len(leaves))

    def draw(key: jax.Array, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.size > max(leaf.shape, default=0):
            return jax.random.normal(key, leaf.shape, leaf.dtype) / np.sqrt(np.prod(leaf.shape[:-1]))
        return jax.random.uniform(key, leaf.shape, leaf.dtype, minval=0.2, maxval=1.0)

    return jax.tree.unflatten(structure, [draw(key, leaf) for key, leaf in zip(keys, leaves, strict=True)])
