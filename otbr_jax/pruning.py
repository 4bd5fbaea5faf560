"""Neuron pruning: the weights of the neurons that changed most are set to zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.errors import InputError
from otbr_jax.neuron_graph import Layer
from otbr_jax.types import Variables, named_leaves, replace_leaves
from otbr_jax.weight_change import Scores, ranks


class PruningInfo(NamedTuple):
    """`pruned`: `{layer name: bool [neurons]}`, true where a neuron's weights were set to zero."""

    pruned: dict[str, jax.Array]


def neurons_to_prune(gamma: float, total: int) -> int:
    """How many of `total` neurons the share `gamma` means (rounded down, as the reference does).

    Raises InputError if `gamma` is not a fraction in [0, 1].
    """
    if not 0 <= gamma <= 1:
        raise InputError(f"gamma: expected a fraction of neurons in [0, 1], found {gamma}")
    return int(gamma * total)


def prune(
    variables: Variables, scores: Scores, layers: Sequence[Layer], *, count: int | jax.Array
) -> tuple[Variables, PruningInfo]:
    """Zeroes the weights of the `count` neurons with the highest scores, counted over all layers together.

    Only the kernels are zeroed; BatchNorm, biases and all other layers stay (OTBR, step 2).

    Args:
      variables: the suspicious network's variables.
      scores: `{layer name: [neurons]}`, usually the neuron weight changes.
      layers: the layers that `scores` is about.
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
