"""Images made from a network alone: it predicts them with confidence, and their statistics match its BatchNorm."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from otbr_jax.inversion import descend
from otbr_jax.settings import field, settings
from otbr_jax.types import Batch, Network, Variables, split


@settings("synthetic")
class SyntheticConfig:
    """How images are made."""

    images: int = field(default=200, at_least=1, doc="how many, equally many of each class as far as possible.")
    steps: int = field(default=100, at_least=1, doc="of Adam, on the images' pixels.")
    learning_rate: float = field(default=0.2, above=0, doc="of Adam; pixels are logistic functions of its variables.")
    statistics: float = field(
        default=100.0,
        at_least=0,
        doc="weight of the distance of the batch's statistics from the network's running ones, 1 at the start.",
    )
    variation: float = field(
        default=10.0, at_least=0, doc="weight of the mean absolute difference between neighbouring pixels, in [0, 1]."
    )


class SyntheticInfo(NamedTuple):
    """Losses, `[steps]` each, before each step.

    Attributes:
      loss: mean cross-entropy of the labels in evaluation mode.
      statistics: distance of the batch's statistics from the running ones, relative to the start.
    """

    loss: jax.Array
    statistics: jax.Array


def statistics_distance(network: Network, variables: Variables, images: jax.Array) -> jax.Array:
    """How far a batch would change the network's running statistics, relative to them; 0 for a network without any.

    The mean over the arrays of the state of `|updated - state|^2 / |state|^2`. Whatever the framework and the kind of
    normalisation, a training-mode pass changes the state by a fixed share of its distance to the batch's statistics.

    Args:
      network: the functions of the network.
      variables: its variables.
      images: `[n, h, w, c]` as the network takes them.
    """
    _, state = split(variables)
    _, updated = network.train(variables, images)
    pairs = [
        (new.astype(jnp.float32), old.astype(jnp.float32))
        for new, old in zip(jax.tree.leaves(updated), jax.tree.leaves(state), strict=True)
        if jnp.issubdtype(old.dtype, jnp.inexact)
    ]
    if not pairs:
        return jnp.float32(0)
    tiny = jnp.finfo(jnp.float32).tiny
    return jnp.mean(jnp.stack([jnp.sum((new - old) ** 2) / (jnp.sum(old**2) + tiny) for new, old in pairs]))


def total_variation(images: jax.Array) -> jax.Array:
    """Mean absolute difference between neighbouring pixels of images `[n, h, w, c]`."""
    rows, columns = (jnp.abs(jnp.diff(images, axis=axis)) for axis in (1, 2))
    return (jnp.sum(rows) + jnp.sum(columns)) / (rows.size + columns.size)


def synthesize(
    network: Network,
    variables: Variables,
    *,
    labels: jax.Array | None = None,
    key: jax.Array,
    config: SyntheticConfig,
    on_step: Callable[[], None] | None = None,
) -> tuple[Batch, SyntheticInfo]:
    """Images that the network predicts with confidence, and whose statistics match its BatchNorm. Pure; jits.

    From noise, Adam lowers the cross-entropy of labels (evaluation mode), the distance of the batch's
    statistics to the running ones, and the total variation. Guarantee: touches no data.

    Args:
      network: the functions of the network.
      variables: its variables.
      labels: int `[config.images]`, the predictions to reach; by default equally many of each class.
      key: typed PRNG key.
      config: how many images, and how.
      on_step: called on the host after each step; None traces no callback.

    Returns:
      `(batch, info)`: images `[n, h, w, c]` in [0, 1], before the network's `prepare`, and their labels `[n]`.

    Source: after DeepInversion, arXiv 1912.08795.
    """
    if labels is None:
        labels = jnp.arange(config.images, dtype=jnp.int32) % network.num_classes
    start = jax.random.normal(key, (config.images, *network.image_shape))
    first = statistics_distance(network, variables, network.prepare(jax.nn.sigmoid(start)))

    def objective(latent: jax.Array, *_: None) -> tuple[jax.Array, SyntheticInfo]:
        images = jax.nn.sigmoid(latent)
        logits = network.answer(variables, images).astype(jnp.float32)
        loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
        distance = statistics_distance(network, variables, network.prepare(images))
        distance = jnp.where(first > 0, distance / jnp.where(first > 0, first, 1.0), 0.0)
        total = loss + config.statistics * distance + config.variation * total_variation(images)
        return total, SyntheticInfo(loss, distance)

    optimizer = optax.adam(config.learning_rate)
    end, info = descend(objective, start, optimizer=optimizer, steps=config.steps, has_aux=True, on_step=on_step)
    return Batch(jax.nn.sigmoid(end.point), labels), info
