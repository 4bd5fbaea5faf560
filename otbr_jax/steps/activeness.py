"""Activeness: gradient norms of each neuron during unlearning.

During clean unlearning the neurons of a backdoored network are far more active than those of a clean one (TSBD,
observation 2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.graph.graph import Layer
from otbr_jax.steps.score import by_neuron
from otbr_jax.steps.unlearn import UnlearningConfig, UnlearningInfo, unlearn
from otbr_jax.types import Batch, BatchFn, Network, Variables, named_leaves

Norms = Mapping[str, jax.Array]
"""At least 0 for every neuron; layer names to arrays `[neurons]`, in execution order."""


class Activeness(NamedTuple):
    """Per-neuron gradient norms over batches.

    Attributes:
      mean: `{layer name: [neurons]}`.
      variance: the same, over these batches (not an estimate for others).
    """

    mean: Norms
    variance: Norms


def gradient_norms(gradients: Any, layers: Sequence[Layer]) -> dict[str, jax.Array]:
    """L2 norm of the gradient of each neuron's weights, `{layer name: [neurons]}`.

    Args:
      gradients: of the loss with respect to `params`, as the network's variables hold them.
      layers: any layers of the neuron graph, in execution order.
    """
    leaves = named_leaves({"params": gradients})
    # Scaled first: squares of small gradients leave float32.
    norms = {}
    for layer in layers:
        rows = by_neuron(leaves[layer.name], layer)
        largest = jnp.max(jnp.abs(rows))
        norms[layer.name] = largest * jnp.linalg.norm(rows / jnp.where(largest > 0, largest, 1.0), axis=1)
    return norms


def activeness(
    network: Network,
    variables: Variables,
    batches: BatchFn | Batch,
    layers: Sequence[Layer],
    *,
    key: jax.Array | None = None,
    config: UnlearningConfig,
    axis_name: str | None = None,
) -> tuple[Activeness, UnlearningInfo]:
    """Gradient norms of every neuron while the network is unlearned, their mean and variance over the batches.

    Pure; jits, and maps over networks (`jax.vmap` over `variables`) or keys.

    Args:
      network: the functions of the network.
      variables: its variables.
      batches: see `unlearn`; the paper uses clean images.
      layers: any layers of the neuron graph.
      key: see `unlearn`.
      config: steps, learning rate, momentum.
      axis_name: mapped axis over which gradients are averaged before their norms.

    Returns:
      `(Activeness, UnlearningInfo)`, the latter with the norms `[steps, neurons]` as `observed`.

    Source: TSBD section 3.2 and figure 3.
    """
    _, info = unlearn(
        network,
        variables,
        batches,
        key=key,
        config=config,
        axis_name=axis_name,
        observe=lambda gradients: gradient_norms(gradients, layers),
    )
    return over_batches(info.observed, layers), info


def over_batches(norms: Norms, layers: Sequence[Layer]) -> Activeness:
    """Mean and variance of norms `{layer name: [steps, neurons]}` over the steps."""
    return Activeness(
        {layer.name: jnp.mean(norms[layer.name], axis=0) for layer in layers},
        {layer.name: jnp.var(norms[layer.name], axis=0) for layer in layers},
    )
