"""Neuron weight change (NWC): how far unlearning moved the weights of each neuron, and the ranking by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from otbr_jax.errors import InputError
from otbr_jax.neuron_graph import Layer
from otbr_jax.types import Variables, named_leaves

Scores = Mapping[str, jax.Array]
"""One value per neuron: layer name -> `[neurons]`, in execution order."""


def by_neuron(kernel: jax.Array, layer: Layer) -> jax.Array:
    """The kernel as one row per neuron: float32 `[neurons, weights of one neuron]`."""
    first = jnp.moveaxis(kernel, layer.neuron_axes, range(len(layer.neuron_axes)))
    return first.reshape(layer.neurons, -1).astype(jnp.float32)


def neuron_weight_changes(before: Variables, after: Variables, layers: Sequence[Layer]) -> dict[str, jax.Array]:
    """NWC of neuron i = sum_j |after[i, j] - before[i, j]|, the L1 norm of its weight change.

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
    """Place of every neuron in one global list over all layers, 0 for the highest score.

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
