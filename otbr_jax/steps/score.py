"""Neuron weight change (NWC): the L1 change of each neuron's weights in unlearning, with ranks and correlation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.errors import InputError
from otbr_jax.graph.graph import Layer
from otbr_jax.types import Variables, named_leaves

Scores = Mapping[str, jax.Array]
"""One value per neuron: layer name -> `[neurons]`, in execution order."""


def by_neuron(kernel: jax.Array, layer: Layer) -> jax.Array:
    """The kernel as one row per neuron: float32 `[neurons, weights of one neuron]`."""
    first = jnp.moveaxis(kernel, layer.neuron_axes, range(len(layer.neuron_axes)))
    return first.reshape(layer.neurons, -1).astype(jnp.float32)


def from_neurons(rows: jax.Array, layer: Layer, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `by_neuron`: rows `[neurons, weights of one neuron]` as an array of the kernel's shape."""
    axes = layer.neuron_axes
    rest = [size for axis, size in enumerate(shape) if axis not in axes]
    first = rows.reshape(*(shape[axis] for axis in axes), *rest)
    return jnp.moveaxis(first, range(len(axes)), axes)


def neuron_weight_changes(before: Variables, after: Variables, layers: Sequence[Layer]) -> dict[str, jax.Array]:
    """NWC of neuron i, `sum_j |after[i, j] - before[i, j]|`, the L1 norm of its weight change.

    Args:
      before: variables of the suspicious network.
      after: variables of the unlearned network.
      layers: the layers to score, in execution order.

    Returns:
      `{layer name: [neurons]}`, float32, at least 0. Source: TSBD section 3; OTBR step 2.
    """
    old, new = named_leaves(before), named_leaves(after)
    return {
        layer.name: jnp.sum(jnp.abs(by_neuron(new[layer.name], layer) - by_neuron(old[layer.name], layer)), axis=1)
        for layer in layers
    }


def ranks(scores: Scores) -> dict[str, jax.Array]:
    """Rank of every neuron among all layers together, 0 for the highest score.

    Equal scores keep execution order. Returns `{layer name: int32 [neurons]}`.
    """
    flat = jnp.concatenate([jnp.ravel(score) for score in scores.values()])
    order = jnp.argsort(-flat, stable=True)
    places = jnp.zeros(flat.shape, jnp.int32).at[order].set(jnp.arange(flat.size, dtype=jnp.int32))
    result, start = {}, 0
    for name, score in scores.items():
        result[name] = places[start : start + score.size]
        start += score.size
    return result


def check_scores(scores: Scores) -> None:
    """Raises InputError that names the first layer whose scores are all zero, or not finite."""
    for name, score in scores.items():
        if not bool(jnp.all(jnp.isfinite(score))):
            raise InputError(
                f"scores of {name}: expected finite neuron weight changes, found NaN or infinity; "
                "unlearning diverged: lower config.unlearning.learning_rate"
            )
        if not bool(jnp.any(score > 0)):
            raise InputError(
                f"scores of {name}: expected a neuron whose weights changed, found all {score.size} at zero; "
                "no gradient reaches this layer, so its neurons cannot be told apart"
            )


class Correlation(NamedTuple):
    """Correlation of two scores of the same neurons.

    Attributes:
      pearson: linear correlation, in [-1, 1]; NaN where one of the scores is constant.
      spearman: correlation of the ranks, ties at their mean rank; NaN as `pearson`.
      overlap: share of the neurons with the highest scores in one that are among them in the other, in [0, 1].
    """

    pearson: jax.Array
    spearman: jax.Array
    overlap: jax.Array


def correlation(first: jax.Array, second: jax.Array, *, top: float = 0.1) -> Correlation:
    """Correlation of two scores `[n]` of the same neurons; `overlap` is of the share `top` of them, at least one.

    Raises InputError if the shapes differ, or `top` is not in (0, 1]. Source: TSBD section 3.1; OTBR figure 1.
    """
    if first.shape != second.shape or first.ndim != 1:
        raise InputError(f"scores: expected two of one shape [n], found {first.shape} and {second.shape}")
    if not 0 < top <= 1:
        raise InputError(f"top: expected a share of neurons in (0, 1], found {top}")
    count = max(1, round(top * first.size))
    highest = [jnp.zeros(first.shape, bool).at[jax.lax.top_k(score, count)[1]].set(True) for score in (first, second)]
    return Correlation(
        pearson=_pearson(first, second),
        spearman=_pearson(*(jax.scipy.stats.rankdata(score) for score in (first, second))),
        overlap=jnp.sum(highest[0] & highest[1]) / count,
    )


def correlations(first: Scores, second: Scores, *, top: float = 0.1) -> tuple[Correlation, dict[str, Correlation]]:
    """Correlation of two scores over all neurons together, and of every layer: `(all, {layer name: Correlation})`.

    Raises InputError as `correlation`, or if the scores are of different layers.
    """
    if list(first) != list(second):
        raise InputError(f"scores: expected two of the same layers, found {list(first)} and {list(second)}")
    together = [jnp.concatenate([jnp.ravel(score) for score in scores.values()]) for scores in (first, second)]
    layers = {name: correlation(first[name], second[name], top=top) for name in first}
    return correlation(*together, top=top), layers


def _pearson(first: jax.Array, second: jax.Array) -> jax.Array:
    # Centred, then scaled: weight changes are so small that their squares leave float32.
    first, second = (values - jnp.mean(values) for values in (first, second))
    first, second = (values / jnp.max(jnp.abs(values)) for values in (first, second))
    return jnp.sum(first * second) / jnp.sqrt(jnp.sum(first**2) * jnp.sum(second**2))
