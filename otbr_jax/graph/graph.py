"""Neuron graphs: layers, the layers that feed them, and groups of neurons that permute together.

`otbr_jax.graph.trace.trace` finds the graph of a network; for a network that it cannot trace, the graph is stated by
hand, a `NeuronGraph` of `Layer`s, and checked by `check_graph` and `permutation_error`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.errors import InputError
from otbr_jax.types import ApplyFn, Variables, named_leaves, replace_leaves

KINDS = ("conv", "grouped", "depthwise", "dense")


class Vector(NamedTuple):
    """A per-neuron vector (bias, BatchNorm scale, mean, ...): axis `axis` of the array `name`."""

    name: str
    axis: int


class Layer(NamedTuple):
    """One convolution or dense kernel, and the axes of its neurons.

    Attributes:
      name: the kernel's name in the variables, such as `params/layer1.0/conv1/kernel`.
      kind: `conv`, `grouped` (neurons of a group read its channels), `depthwise` (a group per channel) or `dense`.
      neuron_axes: axes of the kernel, ascending, whose indices are the layer's neurons (its outputs), row-major; one
        axis but for kernels such as an attention projection's `[features, heads, head size]`.
      input_axes: axes of the kernel whose indices are its inputs (in a grouped convolution, those of one group).
      neurons: number of neurons.
      inputs: number of inputs of the whole layer, all groups together.
      fed_by: `{earlier layer: int [inputs]}` in execution order: which of that layer's neurons each input is, -1 if
        none. Several after a residual addition or a concatenation, none for the first layer.
      tied_to: other layers whose neurons are added to this layer's neurons, or multiplied with them (gates, queries
        with keys): they only permute together.
      vectors: the per-neuron vectors that belong to this layer's neurons.
      main_path: false for shortcuts (the shorter side of an addition), for gates (the longer side of a
        multiplication) and for layers whose outputs are the network's outputs.
    """

    name: str
    kind: str
    neuron_axes: tuple[int, ...]
    input_axes: tuple[int, ...]
    neurons: int
    inputs: int
    fed_by: Mapping[str, tuple[int, ...]] = {}
    tied_to: tuple[str, ...] = ()
    vectors: tuple[Vector, ...] = ()
    main_path: bool = True


class Axis(NamedTuple):
    """Axis `axis` of the array `name`; `neurons [size]`: each index's neuron in the group, -1 if in another group."""

    name: str
    axis: int
    neurons: tuple[int, ...]


class Group(NamedTuple):
    """`size` neurons (or attention heads, or groups of channels) that permute together, and all their axes."""

    size: int
    axes: tuple[Axis, ...]


class NeuronGraph(NamedTuple):
    """`layers` in execution order, and the permutable `groups` of neurons."""

    layers: tuple[Layer, ...]
    groups: tuple[Group, ...] = ()

    def layer(self, name: str) -> Layer:
        """The layer of that name; raises KeyError if there is none."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"no layer named {name!r} in the neuron graph")

    @property
    def main_convolutions(self) -> tuple[Layer, ...]:
        """The convolutions of the main path: what OTBR scores, prunes and fuses as published.

        Depthwise and grouped convolutions are left out: they mix no channels, or few.
        """
        return tuple(layer for layer in self.layers if layer.kind == "conv" and layer.main_path)

    @property
    def hidden_layers(self) -> tuple[Layer, ...]:
        """The convolutions and dense layers of the main path: OTBR's layers in MLPs, transformers and ConvNeXt."""
        return tuple(layer for layer in self.layers if layer.kind in ("conv", "dense") and layer.main_path)


def permute(variables: Variables, group: Group, order: Sequence[int]) -> Variables:
    """Permutes the neurons of one group everywhere: neuron `i` becomes the former neuron `order[i]`.

    The network's function does not change, so that a graph can be tested.

    Args:
      variables: the network's variables.
      group: a group of the network's graph.
      order: a permutation of `range(group.size)`.
    """
    leaves: dict[str, Any] = {}
    current = named_leaves(variables)
    for name, axis, neurons in group.axes:
        places: dict[int, list[int]] = {}
        source = list(range(len(neurons)))
        for index, neuron in enumerate(neurons):
            places.setdefault(neuron, []).append(index)
        # A neuron can own several indices of an axis (after flattening): the k-th takes the place of the k-th.
        for neuron in range(group.size):
            for to, of in zip(places[neuron], places[order[neuron]], strict=True):
                source[to] = of
        leaves[name] = jnp.take(leaves.get(name, current[name]), np.array(source), axis=axis)
    return replace_leaves(variables, leaves)


def permutation_error(
    apply: ApplyFn, variables: Variables, group: Group, images: jax.Array, *, key: jax.Array
) -> jax.Array:
    """Change of the outputs when all neurons of one group are permuted: 0 for a correct graph, but for rounding.

    Args:
      apply: the network's function.
      variables: its variables; equal neurons, such as BatchNorm scales that are all 1, hide mistakes.
      group: a group of its graph.
      images: example input `[n, h, w, c]`.
      key: typed PRNG key of the permutation.

    Returns:
      The largest difference of any logit over the largest logit, float32 scalar.
    """
    cycle = np.asarray(jax.random.permutation(key, group.size))
    order = np.empty(group.size, int)
    order[cycle] = np.roll(cycle, 1)  # one cycle through all: no neuron stays
    expected = apply(variables, images)
    permuted = apply(permute(variables, group, order.tolist()), images)
    return jnp.max(jnp.abs(permuted - expected)) / jnp.maximum(jnp.max(jnp.abs(expected)), 1e-30)


def check_graph(graph: NeuronGraph, variables: Variables) -> None:
    """Checks that a graph stated by hand fits the variables.

    Raises:
      InputError: names the first layer whose kernel, axes, sizes or feeding layers are not in `variables` or the graph.
    """
    arrays = named_leaves(variables)
    earlier: dict[str, Layer] = {}
    for layer in graph.layers:
        where = f"graph: layer {layer.name!r}"
        if layer.name not in arrays:
            raise InputError(f"{where}: expected the name of an array of the variables, found none of that name")
        if layer.kind not in KINDS:
            raise InputError(f"{where}: expected kind to be one of {KINDS}, found {layer.kind!r}")
        shape = np.shape(arrays[layer.name])
        axes = (*layer.neuron_axes, *layer.input_axes)
        if len(set(axes)) != len(axes) or not all(0 <= axis < len(shape) for axis in axes):
            raise InputError(f"{where}: expected different axes of an array of shape {shape}, found {axes}")
        neurons = int(np.prod([shape[axis] for axis in layer.neuron_axes]))
        if layer.neurons != neurons:
            raise InputError(f"{where}: expected neurons={neurons} of shape {shape}, found {layer.neurons}")
        inputs = int(np.prod([shape[axis] for axis in layer.input_axes]))
        if layer.inputs != inputs and (layer.kind in ("conv", "dense") or layer.inputs % inputs):
            raise InputError(f"{where}: expected inputs={inputs} of shape {shape}, found {layer.inputs}")
        for feeder, positions in layer.fed_by.items():
            if feeder not in earlier:
                raise InputError(f"{where}: expected fed_by to name earlier layers, found {feeder!r}")
            if len(positions) != layer.inputs or not all(-1 <= i < earlier[feeder].neurons for i in positions):
                raise InputError(
                    f"{where}: expected fed_by[{feeder!r}] as {layer.inputs} neurons in "
                    f"-1..{earlier[feeder].neurons - 1}, "
                    f"found {len(positions)} in {min(positions, default=0)}..{max(positions, default=0)}"
                )
        earlier[layer.name] = layer
    for group in graph.groups:
        for axis in group.axes:
            if axis.name not in arrays or np.shape(arrays[axis.name])[axis.axis : axis.axis + 1] != (
                len(axis.neurons),
            ):
                raise InputError(
                    f"graph: a group names axis {axis.axis} of {axis.name!r} with {len(axis.neurons)} indices; "
                    "the variables hold no such axis"
                )
