"""Pruned-to-backdoored fusion: align the pruned network with the original by transport, then interpolate."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.errors import InputError
from otbr_jax.graph.graph import Layer
from otbr_jax.settings import field, settings
from otbr_jax.steps import transport
from otbr_jax.steps.score import Scores, by_neuron, from_neurons
from otbr_jax.steps.transport import Plan, TransportConfig
from otbr_jax.types import Variables, named_leaves, replace_leaves

PARTS = ("from_first", "pruned")
ALIGNED = ("kernels", "vectors", "neighbours")


@settings("fusion")
class FusionConfig:
    """Pruned-to-backdoored fusion; the defaults are as published (OTBR, step 3)."""

    lam: float = field(
        default=0.5,
        at_least=0,
        at_most=1,
        doc="the paper's lambda, weight of the aligned pruned network; 0 gives back the original.",
    )
    layers: str = field(
        default="from_first",
        choices=PARTS,
        doc="which layers take part: all `from_first` that holds a pruned neuron, as published, or only those that "
        "hold `pruned` ones.",
    )
    tied: bool = field(
        default=False,
        doc="whether layers whose neurons are added share one plan, of their summed costs, so that both sides of an "
        "addition stay aligned.",
    )
    keep_norms: bool = field(
        default=False,
        doc="whether a mixture of neurons gets the mean norm of what it is mixed of, since averages are shorter "
        "(variance collapse, arXiv 2211.08403).",
    )
    aligned: str = field(
        default="kernels",
        choices=ALIGNED,
        doc="what is aligned and averaged: the layers' `kernels`, as published; their per-channel `vectors` too "
        "(biases, normalisation and its statistics); or both, and the layers' `neighbours`, such as shortcuts and "
        "the classifier.",
    )
    transport: TransportConfig = field(default=TransportConfig(), doc="how the plans are computed.")


class FusionInfo(NamedTuple):
    """`plans`: `{layer name: Plan}`. `fused`: `{layer name: bool}`, whether it takes part."""

    plans: dict[str, Plan]
    fused: dict[str, jax.Array]


class Alignment(NamedTuple):
    """The pruned network in the suspicious one's order of neurons.

    Attributes:
      arrays: `{layer name: {array name: float32 array}}` of the aligned pruned network, of every layer that takes part:
        its kernel, and what else is aligned.
      takes_part: `{layer name: bool}`, whether it does.
      info: the plans, and which of the layers that have one take part.
    """

    arrays: dict[str, dict[str, jax.Array]]
    takes_part: dict[str, jax.Array]
    info: FusionInfo


def layer_plans(
    pruned: Variables,
    backdoored: Variables,
    scores: Scores,
    layers: Sequence[Layer],
    *,
    config: TransportConfig,
    tied: bool = False,
    key: jax.Array | None = None,
) -> dict[str, Plan]:
    """One plan per layer, from the pruned network's neurons to the backdoored one's.

    Plans do not depend on each other, so those of equally many neurons share one compiled solver.

    Args:
      pruned: variables after `pruning.prune`.
      backdoored: variables of the suspicious network.
      scores: neuron weight changes, for masses in proportion to them.
      layers: the layers, in execution order.
      config: masses, cost and solver.
      tied: whether layers whose neurons are added share one plan, of the sums of their costs and scores.
      key: typed PRNG key, which only random masses need.

    Returns:
      `{layer name: Plan with matrix [neurons, neurons]}`, in execution order.
    """
    source, target = named_leaves(pruned), named_leaves(backdoored)
    groups = tied_layers(layers) if tied else [(layer,) for layer in layers]
    keys = [None if key is None else jax.random.fold_in(key, index) for index in range(len(groups))]

    def problem(group: Sequence[Layer], own: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        first, second = (None, None) if own is None else tuple(jax.random.split(own))
        costs, changes = [], []
        for layer in group:
            rows = (by_neuron(source[layer.name], layer), by_neuron(target[layer.name], layer))
            costs.append(transport.cost_matrix(*rows, kind=config.cost))
            changes.append(scores[layer.name])
        cost, change = functools.reduce(jnp.add, costs), functools.reduce(jnp.add, changes)
        return (
            cost,
            transport.mass(config.source_mass, change, key=first),
            transport.mass(config.target_mass, change, key=second),
        )

    plans = {}
    for size in sorted({group[0].neurons for group in groups}):
        members = [(group, own) for group, own in zip(groups, keys, strict=True) if group[0].neurons == size]
        problems = [problem(*member) for member in members]
        # map, not vmap: each plan stops iterating when it has converged.
        solved = jax.lax.map(
            lambda problem: transport.plan(*problem, config=config), jax.tree.map(lambda *x: jnp.stack(x), *problems)
        )
        for index, (group, _) in enumerate(members):
            for layer in group:
                plans[layer.name] = Plan(*(field[index] for field in solved))
    return {layer.name: plans[layer.name] for layer in layers}


def tied_layers(layers: Sequence[Layer]) -> list[tuple[Layer, ...]]:
    """The layers in groups, in execution order, whose neurons are added to each other, directly or through others."""
    places = {layer.name: index for index, layer in enumerate(layers)}
    first = list(range(len(layers)))
    for index, layer in enumerate(layers):
        for name in layer.tied_to:
            if (other := places.get(name)) is not None and layers[other].neurons == layer.neurons:
                old, new = sorted((first[index], first[other]))[::-1]
                first = [new if place == old else place for place in first]
    return [tuple(layers[i] for i, place in enumerate(first) if place == group) for group in sorted({*first})]


def align(
    pruned: Variables,
    backdoored: Variables,
    scores: Scores,
    pruned_neurons: Mapping[str, jax.Array],
    layers: Sequence[Layer],
    *,
    config: FusionConfig,
    neighbours: Sequence[Layer] = (),
    key: jax.Array | None = None,
) -> Alignment:
    """Brings the pruned network's neurons into the order of the suspicious one's, layer after layer (OTBR, step 3).

    With T = the plan normalised per target neuron: inputs are mapped by the T of the layer that feeds them
    (identity before the first fused layer), outputs by the layer's own T, so that each target neuron is a convex
    combination of pruned ones.

    Args:
      pruned: variables after `pruning.prune`.
      backdoored: variables of the suspicious network.
      scores: neuron weight changes, the target masses.
      pruned_neurons: `PruningInfo.pruned`, `{layer name: bool [neurons]}`; they decide which layers take part.
      layers: the layers to align, in execution order.
      config: how plans are computed and which layers take part; not lambda.
      neighbours: layers that follow where `config.aligned` says so, see `layer_choice.neighbours`.
      key: typed PRNG key, which only random masses need.

    Returns:
      The alignment.

    Raises:
      InputError: if masses are random and there is no key, or `config.aligned` asks for neighbours and there are none.
    """
    if config.aligned == "neighbours" and not neighbours:
        raise InputError("neighbours: expected the layers that touch `layers`, see layer_choice.neighbours, found none")
    plans = layer_plans(pruned, backdoored, scores, layers, config=config.transport, tied=config.tied, key=key)
    started = jnp.zeros((), bool)
    fused: dict[str, jax.Array] = {}
    maps: dict[str, jax.Array] = {}
    for layer in layers:
        holds = jnp.any(pruned_neurons[layer.name])
        started = started | holds
        fused[layer.name] = started if config.layers == "from_first" else holds
        own = transport.barycentric_map(plans[layer.name].matrix)
        maps[layer.name] = jnp.where(fused[layer.name], own, jnp.eye(layer.neurons, dtype=own.dtype))
    kernels = map_neurons(pruned, layers, maps)
    if config.keep_norms:
        kernels = _norms_kept(pruned, kernels, layers, maps)
    arrays = {name: {name: kernel} for name, kernel in kernels.items()}
    takes_part = dict(fused)
    if config.aligned in ("vectors", "neighbours"):
        leaves = named_leaves(pruned)
        for layer in layers:
            for vector in layer.vectors:
                arrays[layer.name][vector.name] = _map_axes(leaves[vector.name], (vector.axis,), maps[layer.name])
    if config.aligned == "neighbours":
        for name, (kernel, follows) in _neighbours_mapped(pruned, neighbours, maps, fused).items():
            arrays[name], takes_part[name] = {name: kernel}, follows
    return Alignment(arrays, takes_part, FusionInfo(plans, fused))


def _norms_kept(
    pruned: Variables, kernels: Mapping[str, jax.Array], layers: Sequence[Layer], maps: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """The mapped kernels, each neuron as long as the neurons it is mixed of are on average."""
    original, kept = named_leaves(pruned), {}
    for layer in layers:
        rows, mixed = (by_neuron(leaves[layer.name], layer) for leaves in (original, kernels))
        wanted = jnp.linalg.norm(rows.astype(jnp.float32), axis=1) @ maps[layer.name]
        length = jnp.linalg.norm(mixed, axis=1)
        factor = jnp.where(length > 0, wanted / jnp.where(length > 0, length, 1.0), 1.0)
        kept[layer.name] = from_neurons(mixed * factor[:, None], layer, kernels[layer.name].shape)
    return kept


def _neighbours_mapped(
    pruned: Variables, neighbours: Sequence[Layer], maps: Mapping[str, jax.Array], fused: Mapping[str, jax.Array]
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Kernels of layers without a plan: inputs, and neurons that are added to others', follow; and whether any does."""
    added = {layer.name: [name for name in layer.tied_to if name in maps] for layer in neighbours}
    theirs = {name: maps[others[-1]] for name, others in added.items() if others}
    kernels = map_neurons(pruned, neighbours, theirs, before=maps)
    near = {layer.name: [fused[n] for n in (*layer.fed_by, *added[layer.name]) if n in fused] for layer in neighbours}
    return {name: (kernels[name], jnp.any(jnp.stack(flags))) for name, flags in near.items()}


def map_neurons(
    variables: Variables,
    layers: Sequence[Layer],
    maps: Mapping[str, jax.Array],
    *,
    before: Mapping[str, jax.Array] | None = None,
) -> dict[str, jax.Array]:
    """The layers' kernels with their neurons, and the inputs that these feed, mapped.

    Args:
      variables: the network's.
      layers: in execution order.
      maps: `{layer name: [neurons, neurons]}`; new neuron j is the sum over i of `map[i, j]` times neuron i. Neurons of
        layers without one stay.
      before: the maps of layers that feed these and are not among them.

    Returns:
      `{layer name: float32 array}`, shaped as the layer's kernel.
    """
    kernels = named_leaves(variables)
    feeding = dict(before or {})
    mapped = {}
    for layer in layers:
        mapped[layer.name] = _map_axes(kernels[layer.name], layer.input_axes, _input_map(layer, feeding))
        if layer.name in maps:
            mapped[layer.name] = _map_axes(mapped[layer.name], layer.neuron_axes, maps[layer.name])
            feeding[layer.name] = maps[layer.name]
    return mapped


def interpolate(backdoored: Variables, alignment: Alignment, *, lam: float | jax.Array) -> Variables:
    """W* = lam * aligned + (1 - lam) * backdoored in every layer that takes part (OTBR, step 3).

    Args:
      backdoored: variables of the suspicious network; all arrays that are not aligned are taken from it.
      alignment: what `align` returned.
      lam: the paper's lambda, in [0, 1]; may be traced, so that a sweep is one program.

    Returns:
      The fused variables.
    """
    target = named_leaves(backdoored)
    mixed: dict[str, jax.Array] = {}
    for layer, arrays in alignment.arrays.items():
        for name, aligned in arrays.items():
            original = target[name]
            average = (lam * aligned + (1 - lam) * original).astype(original.dtype)
            # A vector may belong to several layers that are added: the last that takes part counts, as for inputs.
            mixed[name] = jnp.where(alignment.takes_part[layer], average, mixed.get(name, original))
    return replace_leaves(backdoored, mixed)


def fuse(
    pruned: Variables,
    backdoored: Variables,
    scores: Scores,
    pruned_neurons: Mapping[str, jax.Array],
    layers: Sequence[Layer],
    *,
    config: FusionConfig,
    lam: float | jax.Array | None = None,
    neighbours: Sequence[Layer] = (),
    key: jax.Array | None = None,
) -> tuple[Variables, FusionInfo]:
    """Fuses layer after layer, from the first that holds a pruned neuron to the last: `align`, then `interpolate`.

    Takes what `align` takes, and `lam`, by default `config.lam`; returns `(fused variables, FusionInfo)`.
    """
    alignment = align(pruned, backdoored, scores, pruned_neurons, layers, config=config, neighbours=neighbours, key=key)
    return interpolate(backdoored, alignment, lam=config.lam if lam is None else lam), alignment.info


def _input_map(layer: Layer, maps: Mapping[str, jax.Array]) -> jax.Array:
    """The map `[inputs, inputs]` of a layer's inputs, put together from the maps of the layers that feed it.

    Where several layers are added, the last one counts, as in the published method; where they are concatenated, each
    maps its own block; inputs that no mapped layer feeds stay.
    """
    result = jnp.eye(layer.inputs)
    for name, neurons in layer.fed_by.items():
        if name not in maps:
            continue
        index = np.array(neurons)
        fed = index >= 0
        # After flattening a neuron feeds several inputs: the k-th of one is mapped to the k-th of another.
        copy = np.array([neurons[:i].count(neuron) for i, neuron in enumerate(neurons)])
        together = fed[:, None] & fed[None, :] & (copy[:, None] == copy[None, :])
        apart = fed[:, None] != fed[None, :]
        block = maps[name][index[:, None], index[None, :]]
        result = jnp.where(together, block, jnp.where(apart | (fed[:, None] & fed[None, :]), 0.0, result))
    return result


def _map_axes(kernel: jax.Array, axes: Sequence[int], weights: jax.Array) -> jax.Array:
    """New index j of `axes` (together, row-major) = sum over old i of `weights[i, j]` times old index i."""
    last = range(kernel.ndim - len(axes), kernel.ndim)
    moved = jnp.moveaxis(kernel.astype(jnp.float32), axes, last)
    flat = moved.reshape(*moved.shape[: last.start], weights.shape[0])
    mapped = jnp.tensordot(flat, weights, axes=1, precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(mapped.reshape(moved.shape), last, axes)
