"""Which neurons the trigger activates, and how active neurons are on clean images; for Flax Linen networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from otbr_jax.errors import InputError
from otbr_jax.graph.graph import Layer
from otbr_jax.steps.score import Scores
from otbr_jax.types import Network, Variables


def layer_outputs(
    network: Network, variables: Variables, images: jax.Array, layers: Sequence[Layer]
) -> dict[str, jax.Array]:
    """The output of each layer itself, without what follows it: `{layer name: [n, ..., neurons]}`.

    Args:
      network: whose functions call Flax Linen modules.
      variables: its variables.
      images: `[n, h, w, c]` as the network takes them; evaluation mode.
      layers: any layers of the neuron graph.

    Raises:
      InputError: if a layer is no Linen module with a parameter `kernel`.
    """
    names, outputs = {layer.name for layer in layers}, {}

    def record(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output = call(*args, **kwargs)
        name = "/".join(("params", *context.module.path, "kernel"))
        if name in names and context.method_name == "__call__":
            outputs[name] = output
        return output

    with nn.intercept_methods(record):
        network.apply(variables, images)
    for layer in layers:
        if layer.name not in outputs:
            raise InputError(f"layers: expected Flax Linen modules, found {layer.name} without one")
    return {layer.name: outputs[layer.name] for layer in layers}


def trigger_activated_change(
    network: Network, variables: Variables, clean: jax.Array, triggered: jax.Array, layers: Sequence[Layer]
) -> dict[str, jax.Array]:
    """TAC: how far the trigger changes each neuron's output, `{layer name: [neurons]}`.

    The L2 norm over positions of the difference between the outputs on an image with and without the trigger, averaged
    over images `[n, h, w, c]`, as the network takes them. Source: Zheng et al., arXiv 2208.03111, definition 1.
    """
    with_trigger, without = (layer_outputs(network, variables, images, layers) for images in (triggered, clean))
    return {name: _over_images(with_trigger[name] - without[name]) for name in without}


def clean_activation(
    network: Network, variables: Variables, clean: jax.Array, layers: Sequence[Layer]
) -> dict[str, jax.Array]:
    """Each neuron's activation on images `[n, h, w, c]`, relative to its layer's mean: `{layer name: [neurons]}`.

    The L2 norm over positions, averaged over images. Fine-Pruning (arXiv 1805.12185) prunes the least active ones.
    """
    norms: Mapping[str, jax.Array] = {
        name: _over_images(output) for name, output in layer_outputs(network, variables, clean, layers).items()
    }
    return {name: norm / jnp.mean(norm) for name, norm in norms.items()}


def random_scores(like: Scores, *, key: jax.Array) -> dict[str, jax.Array]:
    """Uniformly random scores of the same neurons."""
    return {
        name: jax.random.uniform(jax.random.fold_in(key, index), score.shape)
        for index, (name, score) in enumerate(like.items())
    }


def _over_images(outputs: jax.Array) -> jax.Array:
    positions = tuple(range(1, outputs.ndim - 1))
    return jnp.mean(jnp.sqrt(jnp.sum(outputs.astype(jnp.float32) ** 2, axis=positions)), axis=0)
