"""Pruned-to-backdoored fusion: align the pruned network with the original by transport, then interpolate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.graph.graph import Layer
from otbr_jax.settings import field, settings
from otbr_jax.steps import transport
from otbr_jax.steps.score import Scores, by_neuron
from otbr_jax.steps.transport import Plan, TransportConfig
from otbr_jax.types import Variables, named_leaves, replace_leaves


@settings("fusion")
class FusionConfig:
    """Pruned-to-backdoored fusion; the defaults are as published (OTBR, step 3)."""

    lam: float = field(
        default=0.5,
        at_least=0,
        at_most=1,
        doc="the paper's lambda, weight of the aligned pruned network; 0 returns the original network.",
    )
    transport: TransportConfig = field(default=TransportConfig(), doc="how the plans are computed.")


class FusionInfo(NamedTuple):
    """`plans`: `{layer name: Plan}`. `fused`: `{layer name: bool}`, whether the layer is fused."""

    plans: dict[str, Plan]
    fused: dict[str, jax.Array]


class Alignment(NamedTuple):
    """The pruned network in the suspicious one's order of neurons.

    Attributes:
      kernels: `{layer name: float32 array}`, of the aligned pruned network.
      info: the plans, and which layers are fused.
    """

    kernels: dict[str, jax.Array]
    info: FusionInfo


def layer_plans(
    pruned: Variables,
    backdoored: Variables,
    scores: Scores,
    layers: Sequence[Layer],
    *,
    config: TransportConfig,
    key: jax.Array | None = None,
) -> dict[str, Plan]:
    """One plan per layer, from the pruned network's neurons to the backdoored one's.

    Plans do not depend on each other, so those of equally many neurons share one compiled solver.

    Args:
      pruned: variables after `prune.prune`.
      backdoored: variables of the suspicious network.
      scores: neuron weight changes, for masses proportional to them.
      layers: the layers, in execution order.
      config: masses, cost and solver.
      key: typed PRNG key, which only random masses need.

    Returns:
      `{layer name: Plan with matrix [neurons, neurons]}`, in execution order.
    """
    source, target = named_leaves(pruned), named_leaves(backdoored)
    keys = [None if key is None else jax.random.fold_in(key, index) for index in range(len(layers))]

    def problem(layer: Layer, own: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        first, second = (None, None) if own is None else tuple(jax.random.split(own))
        rows = (by_neuron(source[layer.name], layer), by_neuron(target[layer.name], layer))
        change = scores[layer.name]
        return (
            transport.cost_matrix(*rows, kind=config.cost),
            transport.mass(config.source_mass, change, key=first),
            transport.mass(config.target_mass, change, key=second),
        )

    plans = {}
    for size in sorted({layer.neurons for layer in layers}):
        members = [(layer, own) for layer, own in zip(layers, keys, strict=True) if layer.neurons == size]
        problems = [problem(*member) for member in members]
        # map, not vmap: each plan stops iterating when it has converged.
        solved = jax.lax.map(
            lambda problem: transport.plan(*problem, config=config), jax.tree.map(lambda *x: jnp.stack(x), *problems)
        )
        for index, (layer, _) in enumerate(members):
            plans[layer.name] = Plan(*(field[index] for field in solved))
    return {layer.name: plans[layer.name] for layer in layers}


def align(
    pruned: Variables,
    backdoored: Variables,
    scores: Scores,
    pruned_neurons: Mapping[str, jax.Array],
    layers: Sequence[Layer],
    *,
    config: FusionConfig,
    key: jax.Array | None = None,
) -> Alignment:
    """Brings the pruned network's neurons into the order of the suspicious one's, layer after layer (OTBR, step 3).

    With T = the plan normalised per target neuron: inputs are mapped by the T of the layer that feeds them
    (identity before the first fused layer), outputs by the layer's own T, so that each target neuron is a convex
    combination of pruned ones. All layers are fused from the first with a pruned neuron on.

    Args:
      pruned: variables after `prune.prune`.
      backdoored: variables of the suspicious network.
      scores: neuron weight changes, the target masses.
      pruned_neurons: `PruningInfo.pruned`, `{layer name: bool [neurons]}`; they decide which layers are fused.
      layers: the layers to align, in execution order.
      config: how plans are computed; not lambda.
      key: typed PRNG key, which only random masses need.

    Returns:
      The alignment.

    Raises:
      InputError: if masses are random and there is no key.
    """
    plans = layer_plans(pruned, backdoored, scores, layers, config=config.transport, key=key)
    started = jnp.zeros((), bool)
    fused: dict[str, jax.Array] = {}
    maps: dict[str, jax.Array] = {}
    for layer in layers:
        started = started | jnp.any(pruned_neurons[layer.name])
        fused[layer.name] = started
        own = transport.barycentric_map(plans[layer.name].matrix)
        maps[layer.name] = jnp.where(started, own, jnp.eye(layer.neurons, dtype=own.dtype))
    return Alignment(map_neurons(pruned, layers, maps), FusionInfo(plans, fused))


def map_neurons(variables: Variables, layers: Sequence[Layer], maps: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The layers' kernels with their neurons, and the inputs that these feed, mapped.

    Args:
      variables: the network's.
      layers: in execution order.
      maps: `{layer name: [neurons, neurons]}`; new neuron j is the sum over i of `map[i, j]` times neuron i.

    Returns:
      `{layer name: float32 array}`, shaped as the layer's kernel.
    """
    kernels = named_leaves(variables)
    feeding: dict[str, jax.Array] = {}
    mapped = {}
    for layer in layers:
        inputs = _map_axes(kernels[layer.name], layer.input_axes, _input_map(layer, feeding))
        mapped[layer.name] = _map_axes(inputs, layer.neuron_axes, maps[layer.name])
        feeding[layer.name] = maps[layer.name]
    return mapped


def interpolate(backdoored: Variables, alignment: Alignment, *, lam: float | jax.Array) -> Variables:
    """W* = lam * aligned + (1 - lam) * backdoored in every fused layer (OTBR, step 3).

    Args:
      backdoored: variables of the suspicious network; source of all arrays that are not aligned.
      alignment: result of `align`.
      lam: the paper's lambda, in [0, 1]; may be traced, so that a sweep is one program.

    Returns:
      The fused variables.
    """
    target = named_leaves(backdoored)
    mixed: dict[str, jax.Array] = {}
    for name, aligned in alignment.kernels.items():
        original = target[name]
        average = (lam * aligned + (1 - lam) * original).astype(original.dtype)
        mixed[name] = jnp.where(alignment.info.fused[name], average, original)
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
    key: jax.Array | None = None,
) -> tuple[Variables, FusionInfo]:
    """Fuses layer after layer, from the first with a pruned neuron to the last: `align`, then `interpolate`.

    Takes what `align` takes, and `lam`, by default `config.lam`; returns `(fused variables, FusionInfo)`.
    """
    alignment = align(pruned, backdoored, scores, pruned_neurons, layers, config=config, key=key)
    return interpolate(backdoored, alignment, lam=config.lam if lam is None else lam), alignment.info


def _input_map(layer: Layer, maps: Mapping[str, jax.Array]) -> jax.Array:
    """The map `[inputs, inputs]` of a layer's inputs, composed of the maps of the layers that feed it.

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
    transposed = jnp.moveaxis(kernel.astype(jnp.float32), axes, last)
    flat = transposed.reshape(*transposed.shape[: last.start], weights.shape[0])
    mapped = jnp.tensordot(flat, weights, axes=1, precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(mapped.reshape(transposed.shape), last, axes)
