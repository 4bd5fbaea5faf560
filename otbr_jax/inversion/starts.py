"""Where inversions start: random triggers, and which of them come nearest to a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from otbr_jax.inversion.success import logits_with
from otbr_jax.numerics.collectives import own_part, total
from otbr_jax.triggers import TriggerFamily
from otbr_jax.types import Batch, Network, Variables

_AT_ONCE = 8  # random triggers that are tried at once


def random_starts(family: TriggerFamily, image_shape: tuple[int, int, int], *, count: int, key: jax.Array) -> Any:
    """Random latents of a family, with a leading axis `[count]`."""
    return jax.vmap(lambda key: family.init(key, image_shape))(jax.random.split(key, count))


def score_starts(
    network: Network,
    variables: Variables,
    images: Batch,
    family: TriggerFamily,
    starts: Any,
    *,
    budget: jax.Array,
    axis_name: str | None = None,
) -> jax.Array:
    """How likely each start makes each class on images of others, `[starts, classes]`, a mean logarithm.

    One pass of the network serves all classes.

    Args:
      network: the functions of the network.
      variables: its variables.
      images: `[n, h, w, c]` in [0, 1], and what the network answers them with; on a mapped axis a device's own part.
      family: of the triggers.
      starts: latents, with a leading axis.
      budget: at which all of them are put on.
      axis_name: mapped axis whose devices share the images.
    """

    def tried(starts: Any) -> jax.Array:
        parameters = jax.vmap(family.parameters)(starts)
        budgets = jnp.full(len(jax.tree.leaves(starts)[0]), budget)
        logits = logits_with(network, variables, images.images, family.trigger(parameters, budgets))
        others = images.labels[:, None, None] != jnp.arange(logits.shape[-1])
        logarithms, count = jnp.sum(jax.nn.log_softmax(logits) * others, axis=0), jnp.sum(others, axis=0)
        return total(logarithms, axis_name) / jnp.maximum(total(count, axis_name), 1)

    return map_in_chunks(tried, _AT_ONCE, starts)


def step_batch(
    images: Batch, number: jax.Array | int, batch_size: int | None, axis_name: str | None, *, name: str = "batch_size"
) -> Batch:
    """The images of a step: so many in turn, all for None; on a mapped axis the device's own part of them."""
    if batch_size is None:
        return own_part(images, axis_name, name=name)
    places = (number * batch_size + jnp.arange(batch_size)) % len(images.labels)
    places = own_part(places, axis_name, name=name)
    return Batch(images.images[places], images.labels[places])


def map_in_chunks(function: Callable[..., Any], size: int, *trees: Any) -> Any:
    """`function` of rows of pytrees, so many at once; the last chunk repeats rows to be as long."""
    count = len(jax.tree.leaves(trees)[0])
    size = min(size, count)
    chunks = -(-count // size)
    places = jnp.arange(chunks * size) % count
    split = jax.tree.map(lambda leaf: leaf[places].reshape(chunks, size, *leaf.shape[1:]), trees)
    found = jax.lax.map(lambda each: function(*each), split)
    return jax.tree.map(lambda leaf: leaf.reshape(chunks * size, *leaf.shape[2:])[:count], found)
