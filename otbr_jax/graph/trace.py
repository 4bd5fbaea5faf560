"""Traces a network's function to its neuron graph: which axes hold neurons, and which layers feed which.

Every index of every axis of every array in `variables` gets a slot (`otbr_jax.graph.slots`). Following the jaxpr,
operations unite the slots that must permute together: a BatchNorm scale with the channels it scales, the inputs of a
kernel with the outputs that feed it, both sides of an addition. Groups of slots remain, and each slot is one
neuron wherever it appears. No layer's name or class is used.

This file reads the graph off the slots; `otbr_jax.graph.rules` has the rules of operations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from otbr_jax.graph.evaluate import Rule, evaluate, inside
from otbr_jax.graph.graph import Layer, NeuronGraph, Vector
from otbr_jax.graph.rules import Kernel, Tracing, Value, follow
from otbr_jax.graph.slots import CannotMergeError, groups
from otbr_jax.types import ApplyFn, Variables, named_leaves


def trace(apply: ApplyFn, variables: Variables, images: Any) -> NeuronGraph:
    """Finds the neurons of a network by tracing its function once (nothing is computed).

    Args:
      apply: evaluation-mode function of the network.
      variables: its variables (arrays or `jax.ShapeDtypeStruct`), any pytree.
      images: example input `[n, h, w, c]` (array or `jax.ShapeDtypeStruct`).

    Returns:
      The neuron graph.

    Raises:
      InputError: names an operation that the tracer cannot follow, its equation and its source line.
    """
    # At least two images: an axis of size 1 cannot be told from one that was inserted.
    batch = (max(2, np.shape(images)[0]), *np.shape(images)[1:])
    jaxpr = jax.make_jaxpr(apply)(variables, jax.ShapeDtypeStruct(batch, images.dtype))
    state = Tracing()
    inputs = [state.parameter(name, np.shape(leaf)) for name, leaf in named_leaves(variables).items()]
    inputs.append(state.image(batch))
    outputs = evaluate(jaxpr.jaxpr, jaxpr.consts, inputs, _following(state), constant=state.constant)
    return _graph(state, outputs)


def _following(state: Tracing) -> Rule:
    """A rule that follows labels of arrays, and the source line of each operation."""

    def rule(eqn: Any, operands: Sequence[Value]) -> list[Value]:
        outside = state.where
        state.where = _source_line(eqn) or outside
        if called := inside(eqn):
            results = evaluate(*called, operands, rule, constant=state.constant)
        else:
            try:
                results = follow(state, eqn, operands)
            except CannotMergeError:
                raise state.cannot("neurons whose axes are split differently on two sides", eqn) from None
        state.where = outside
        return results

    return rule


def _source_line(eqn: Any) -> str | None:
    """The innermost source line of an equation outside the libraries of the field, if it is known."""
    traceback = eqn.source_info.traceback
    for frame in traceback.frames if traceback is not None else []:
        if not any(f"/{package}/" in frame.file_name for package in ("jax", "flax", "haiku", "equinox")):
            return f"{frame.file_name}:{frame.line_num}"
    return None


# --- reading off the graph --------------------------------------------------------------------------------------


def _graph(state: Tracing, results: Sequence[Value]) -> NeuronGraph:
    slots = state.slots
    classes = [np.ravel(label.ids) for value in results for label in value.labels]
    for ids in classes:
        slots.pin(ids)
    neurons = [state.own_slots(kernel.name, kernel.neuron_axes) for kernel in state.kernels]
    inputs = [
        state.own_slots(kernel.name, kernel.input_axes) if kernel.inputs is None else kernel.inputs
        for kernel in state.kernels
    ]
    slots.close()
    arrays = {(name, axis): slots.roots(ids) for name, axes in state.arrays.items() for axis, ids in enumerate(axes)}
    outputs = [slots.roots(ids).tolist() for ids in neurons]
    final = {root for ids in classes for root in slots.roots(ids).tolist()}
    owners: dict[int, list[tuple[int, int]]] = {}
    for index, own in enumerate(outputs):
        for neuron, root in enumerate(own):
            owners.setdefault(root, []).append((index, neuron))
    vectors = _vectors(state, arrays)
    _, parents = slots.families()
    layers = []
    for index, kernel in enumerate(state.kernels):
        own = set(outputs[index])
        along = {root: None for axis in kernel.neuron_axes for root in arrays[kernel.name, axis].tolist()}
        tied = sorted({other for root in own for other, _ in owners[root]} - {index})
        layers.append(
            Layer(
                name=kernel.name,
                kind=kernel.kind,
                neuron_axes=kernel.neuron_axes,
                input_axes=kernel.input_axes,
                neurons=len(outputs[index]),
                inputs=len(inputs[index]),
                fed_by={
                    state.kernels[feeder].name: positions
                    for feeder, positions in _feeders(slots.roots(inputs[index]).tolist(), owners, parents).items()
                    if feeder < index
                },
                tied_to=tuple(state.kernels[other].name for other in tied),
                vectors=_on_all_axes([vector for root in along for vector in vectors.get(root, ())], kernel),
                main_path=index not in state.side and own.isdisjoint(final),
            )
        )
    neuron_axes = {(kernel.name, axis) for kernel in state.kernels for axis in kernel.neuron_axes}
    return NeuronGraph(tuple(layers), groups(slots, arrays, neuron_axes))


def _vectors(state: Tracing, arrays: Mapping[tuple[str, int], np.ndarray]) -> dict[int, list[Vector]]:
    """Per-neuron vectors of every slot: all axes of arrays that are not kernels."""
    kernels = {kernel.name for kernel in state.kernels}
    vectors: dict[int, list[Vector]] = {}
    for (name, axis), roots in arrays.items():
        if name not in kernels:
            for root in dict.fromkeys(roots.tolist()):
                vectors.setdefault(root, []).append(Vector(name, axis))
    return vectors


def _on_all_axes(vectors: Sequence[Vector], kernel: Kernel) -> tuple[Vector, ...]:
    """Each vector once; for a kernel with several neuron axes, such as heads and head sizes, arrays with all."""
    once = list(dict.fromkeys(vectors))
    names = [vector.name for vector in once]
    return tuple(vector for vector in once if names.count(vector.name) >= len(kernel.neuron_axes))


def _feeders(
    inputs: Sequence[int], owners: Mapping[int, Sequence[tuple[int, int]]], parents: Mapping[int, set[int]]
) -> dict[int, tuple[int, ...]]:
    """`{layer: neuron of each input, -1 if none}`, layers in execution order."""
    positions: dict[int, list[int]] = {}
    for place, slot in enumerate(inputs):
        # After flattening an input is the child of its channel's neuron: look for the nearest ancestor that is one.
        waiting, visited = [slot], {slot}
        while waiting and not any(near in owners for near in waiting):
            waiting = [above for near in waiting for above in parents.get(near, ()) if above not in visited]
            visited.update(waiting)
        for near in waiting:
            for layer, neuron in owners.get(near, ()):
                row = positions.setdefault(layer, [-1] * len(inputs))
                if row[place] < 0:
                    row[place] = neuron
    return {layer: tuple(positions[layer]) for layer in sorted(positions)}
