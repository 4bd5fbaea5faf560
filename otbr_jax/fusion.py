"""Pruned-to-backdoored fusion: align the pruned network with the original by transport, then interpolate."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax import transport
from otbr_jax.errors import InputError
from otbr_jax.neuron_graph import Layer
from otbr_jax.transport import Plan, TransportConfig
from otbr_jax.types import Variables, named_leaves, replace_leaves
from otbr_jax.weight_change import Scores, by_neuron


@dataclasses.dataclass(frozen=True)
class FusionConfig:
    """Pruned-to-backdoored fusion as published (OTBR, step 3).

    Attributes:
      lam: the paper's lambda, weight of the aligned pruned network, in [0, 1]; 0 gives back the original.
      transport: how the plans are computed.
    """

    lam: float = 0.5
    transport: TransportConfig = TransportConfig()

    def __post_init__(self) -> None:
        if not 0 <= self.lam <= 1:
            raise InputError(f"fusion.lam: expected the paper's lambda in [0, 1], found {self.lam}")


class FusionInfo(NamedTuple):
    """`plans`: `{layer name: Plan}`. `fused`: `{layer name: bool}`, false before the first pruned layer."""

    plans: dict[str, Plan]
    fused: dict[str, jax.Array]


def layer_plans(
    pruned: Variables, backdoored: Variables, scores: Scores, layers: Sequence[Layer], *, config: TransportConfig
) -> dict[str, Plan]:
    """One plan per layer, from the pruned network's neurons (uniform mass) to the backdoored one's (mass NWC).

    Plans do not depend on each other, so layers with equally many neurons share one compiled solver.

    Returns:
      `{layer name: Plan with matrix [neurons, neurons]}`, in execution order.
    """
    source, target = named_leaves(pruned), named_leaves(backdoored)
    plans = {}
    for size in sorted({layer.neurons for layer in layers}):
        members = [layer for layer in layers if layer.neurons == size]
        costs = [
            transport.euclidean_cost(by_neuron(source[layer.name], layer), by_neuron(target[layer.name], layer))
            for layer in members
        ]
        masses = [transport.proportional_mass(scores[layer.name]) for layer in members]
        # map, not vmap: each layer stops iterating when it has converged.
        solved = jax.lax.map(
            lambda problem: transport.plan(
                problem[0], transport.uniform_mass(problem[1].size), problem[1], config=config
            ),
            (jnp.stack(costs), jnp.stack(masses)),
        )
        for index, layer in enumerate(members):
            plans[layer.name] = Plan(*(field[index] for field in solved))
    return {layer.name: plans[layer.name] for layer in layers}


def fuse(
    pruned: Variables,
    backdoored: Variables,
    scores: Scores,
    pruned_neurons: Mapping[str, jax.Array],
    layers: Sequence[Layer],
    *,
    config: FusionConfig,
    lam: float | jax.Array | None = None,
) -> tuple[Variables, FusionInfo]:
    """Fuses layer after layer, from the first that holds a pruned neuron to the last (OTBR, step 3).

    With T = the plan normalised per target neuron: inputs are mapped by the T of the layer that feeds them
    (identity before the first fused layer), outputs by the layer's own T, so that each target neuron is a convex
    combination of pruned ones; then W* = lam * aligned + (1 - lam) * backdoored.

    Args:
      pruned: variables after `pruning.prune`.
      backdoored: variables of the suspicious network; all arrays but the layers' kernels are taken from it.
      scores: neuron weight changes, the target masses.
      pruned_neurons: `PruningInfo.pruned`, `{layer name: bool [neurons]}`.
      layers: the layers to fuse, in execution order.
      config: lambda and transport.
      lam: overrides `config.lam`; may be traced.

    Returns:
      `(fused variables, FusionInfo)`.
    """
    lam = config.lam if lam is None else lam
    source, target = named_leaves(pruned), named_leaves(backdoored)
    plans = layer_plans(pruned, backdoored, scores, layers, config=config.transport)
    maps: dict[str, jax.Array] = {}
    fused: dict[str, jax.Array] = {}
    kernels = {}
    started = jnp.zeros((), bool)
    for layer in layers:
        started = started | jnp.any(pruned_neurons[layer.name])
        fused[layer.name] = started
        kernel = source[layer.name]
        kernel = _map_axes(kernel, layer.input_axes, _input_map(layer, maps))
        own = transport.barycentric_map(plans[layer.name].matrix)
        kernel = _map_axes(kernel, layer.neuron_axes, own)
        original = target[layer.name]
        mixed = lam * kernel + (1 - lam) * original
        kernels[layer.name] = jnp.where(started, mixed.astype(original.dtype), original)
        maps[layer.name] = jnp.where(started, own, jnp.eye(layer.neurons, dtype=own.dtype))
    return replace_leaves(backdoored, kernels), FusionInfo(plans, fused)


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
