"""Starts of inversions: random triggers, and how likely each makes a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from otbr_jax.inversion.success import logits_with
from otbr_jax.numerics.collectives import own_part, total
from otbr_jax.triggers import TriggerFamily
from otbr_jax.types import Batch, Network, Variables

_AT_ONCE = 8  # random triggers that are scored at once


def random_starts(family: TriggerFamily, image_shape: tuple[int, int, int], *, count: int, key: jax.Array) -> Any:
    """Random latents of a family, with a leading axis `[count]`."""
    return jax.vmap(lambda key: family.init(key, image_shape))(jax.random.split(key, count))


def score_starts(
    network: Network,
    variables: Variables,
    batch: Batch,
    family: TriggerFamily,
    starts: Any,
    *,
    budget: jax.Array,
    axis_name: str | None = None,
) -> jax.Array:
    """Mean log-probability of each class on images of other classes that carry each start, `[starts, classes]`.

    All classes share one forward pass.

    Args:
      network: the functions of the network.
      variables: its variables.
      batch: images `[n, h, w, c]` in [0, 1] and the network's predictions; on a mapped axis a device's own part.
      family: of the triggers.
      starts: latents, with a leading axis.
      budget: of all of them.
      axis_name: mapped axis whose devices share the images.
    """

    def score(starts: Any) -> jax.Array:
        parameters = jax.vmap(family.parameters)(starts)
        budgets = jnp.full(len(jax.tree.leaves(starts)[0]), budget)
        logits = logits_with(network, variables, batch.images, family.trigger(parameters, budgets))
        others = batch.labels[:, None, None] != jnp.arange(logits.shape[-1])
        sums, count = jnp.sum(jax.nn.log_softmax(logits) * others, axis=0), jnp.sum(others, axis=0)
        return total(sums, axis_name) / jnp.maximum(total(count, axis_name), 1)

    return map_in_chunks(score, _AT_ONCE, starts)


def step_batch(
    batch: Batch, number: jax.Array | int, batch_size: int | None, axis_name: str | None, *, name: str = "batch_size"
) -> Batch:
    """The images of a step, taken in order; all of them for None. On a mapped axis the device's own part."""
    if batch_size is None:
        return own_part(batch, axis_name, name=name)
    places = (number * batch_size + jnp.arange(batch_size)) % len(batch.labels)
    places = own_part(places, axis_name, name=name)
    return Batch(batch.images[places], batch.labels[places])


def map_in_chunks(function: Callable[..., Any], size: int, *trees: Any) -> Any:
    """Maps `function` over rows of pytrees, `size` rows at once; the last chunk is padded with repeated rows."""
    count = len(jax.tree.leaves(trees)[0])
    size = min(size, count)
    chunks = -(-count // size)
    places = jnp.arange(chunks * size) % count
    split = jax.tree.map(lambda leaf: leaf[places].reshape(chunks, size, *leaf.shape[1:]), trees)
    results = jax.lax.map(lambda each: function(*each), split)
    return jax.tree.map(lambda leaf: leaf.reshape(chunks * size, *leaf.shape[2:])[:count], results)
