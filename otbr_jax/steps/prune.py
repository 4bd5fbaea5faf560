"""Pruning: sets weights of the neurons that changed most to zero, all of them or those that changed most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.errors import InputError
from otbr_jax.graph.graph import Layer
from otbr_jax.steps.score import Scores, by_neuron, from_neurons, ranks
from otbr_jax.types import Variables, named_leaves, replace_leaves


class PruningInfo(NamedTuple):
    """`pruned`: `{layer name: bool [neurons]}`, true where a neuron's weights were set to zero."""

    pruned: dict[str, jax.Array]


class ReinitInfo(NamedTuple):
    """What zero re-initialisation changed.

    Attributes:
      neurons: `{layer name: bool [neurons]}`, true for the chosen neurons.
      zeroed: `{layer name: bool, the kernel's shape}`, true for the weights that were set to zero.
    """

    neurons: dict[str, jax.Array]
    zeroed: dict[str, jax.Array]


SCHEMES = ("weights", "neurons")


def neurons_to_prune(gamma: float, total: int) -> int:
    """The number of neurons in the share `gamma` of `total` (rounded down, as in the reference).

    Raises InputError if `gamma` is not a fraction in [0, 1].
    """
    if not 0 <= gamma <= 1:
        raise InputError(f"gamma: expected a fraction of neurons in [0, 1], found {gamma}")
    return int(gamma * total)


def weights_to_zero(share: float | jax.Array, pool: jax.Array) -> jax.Array:
    """The number of weights in the share of `pool`, to four decimals, rounded down; exact, in whole numbers."""
    parts = jnp.round(jnp.asarray(share) * 10_000).astype(jnp.int32)
    return pool // 10_000 * parts + pool % 10_000 * parts // 10_000


def prune(
    variables: Variables, scores: Scores, layers: Sequence[Layer], *, count: int | jax.Array
) -> tuple[Variables, PruningInfo]:
    """Zeroes the weights of the `count` neurons with the highest scores, counted over all layers together.

    Only the kernels are zeroed; BatchNorm, biases and all other layers stay (OTBR, step 2).

    Args:
      variables: the suspicious network's variables.
      scores: `{layer name: [neurons]}`, usually the neuron weight changes.
      layers: the layers of `scores`.
      count: number of neurons; may be traced, so that a sweep over gamma is one program.

    Returns:
      `(variables, PruningInfo)`.
    """
    places = ranks(scores)
    leaves, pruned = named_leaves(variables), {}
    changed = {}
    for layer in layers:
        pruned[layer.name] = places[layer.name] < count
        kernel = leaves[layer.name]
        shape = [size if axis in layer.neuron_axes else 1 for axis, size in enumerate(kernel.shape)]
        changed[layer.name] = jnp.where(pruned[layer.name].reshape(shape), 0.0, kernel)
    return replace_leaves(variables, changed), PruningInfo(pruned)


def reinitialize(
    variables: Variables,
    unlearned: Variables,
    scores: Scores,
    layers: Sequence[Layer],
    *,
    count: int | jax.Array,
    share: float | jax.Array,
    scheme: str = "weights",
) -> tuple[Variables, ReinitInfo]:
    """Zero re-initialisation: of the neurons that changed most, the weights that changed most are set to zero.

    The `count` neurons with the highest scores are chosen over all layers together; the weights of all of them are
    pooled, and the share of the pool with the largest weight changes is set to zero, ties included, so that neither the
    order of neurons nor that of weights matters. BatchNorm, biases and all other layers stay
    (TSBD, step 2).

    Args:
      variables: the suspicious network's variables.
      unlearned: the same after clean unlearning.
      scores: `{layer name: [neurons]}`, usually the neuron weight changes.
      layers: the layers of `scores`.
      count: number of neurons; may be traced, so that a sweep over n is one program.
      share: the paper's m, in [0, 1]; may be traced. The number of weights is rounded down.
      scheme: a name of `SCHEMES`: `weights`, as published; or `neurons`, all parameters of the chosen neurons, their
        biases and normalisation too, whatever `share` is.

    Returns:
      `(variables, ReinitInfo)`.

    Raises:
      InputError: if there is no such scheme.
    """
    if scheme not in SCHEMES:
        raise InputError(f"scheme: expected one of {[*SCHEMES]}, found {scheme!r}")
    if scheme == "neurons":
        return _without_neurons(variables, scores, layers, count=count)
    places = ranks(scores)
    before, after = named_leaves(variables), named_leaves(unlearned)
    chosen = {layer.name: places[layer.name] < count for layer in layers}
    # -1 where a weight is not in the pool, less than any change.
    changes = [
        jnp.where(
            chosen[layer.name][:, None],
            jnp.abs(by_neuron(after[layer.name], layer) - by_neuron(before[layer.name], layer)),
            -1.0,
        )
        for layer in layers
    ]
    ascending = jnp.sort(jnp.concatenate([jnp.ravel(change) for change in changes]))
    number = weights_to_zero(share, jnp.sum(ascending >= 0))
    # The change of the last weight that is set to zero; infinity where there is none.
    threshold = jnp.where(number > 0, ascending[-jnp.maximum(number, 1)], jnp.inf)
    zeroed, changed = {}, {}
    for layer, change in zip(layers, changes, strict=True):
        kernel = before[layer.name]
        zeroed[layer.name] = from_neurons(change >= threshold, layer, kernel.shape)
        changed[layer.name] = jnp.where(zeroed[layer.name], 0.0, kernel)
    return replace_leaves(variables, changed), ReinitInfo(chosen, zeroed)


def _without_neurons(
    variables: Variables, scores: Scores, layers: Sequence[Layer], *, count: int | jax.Array
) -> tuple[Variables, ReinitInfo]:
    """Sets all parameters of the `count` neurons with the highest scores to zero."""
    pruned, info = prune(variables, scores, layers, count=count)
    leaves, changed, zeroed = named_leaves(pruned), dict[str, jax.Array](), {}
    for layer in layers:
        chosen, kernel = info.pruned[layer.name], leaves[layer.name]
        rows = by_neuron(kernel, layer)
        zeroed[layer.name] = from_neurons(jnp.broadcast_to(chosen[:, None], rows.shape), layer, kernel.shape)
        for name, axis in layer.vectors:
            if name.startswith("params/"):
                vector = changed.get(name, leaves[name])
                shape = [-1 if place == axis else 1 for place in range(vector.ndim)]
                changed[name] = jnp.where(chosen.reshape(shape), 0.0, vector)
    return replace_leaves(pruned, changed), ReinitInfo(info.pruned, zeroed)
