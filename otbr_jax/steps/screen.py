"""Screening: which of many classes are worth a search of triggers, by what costs little.

A search of every class takes hundreds of gradients for each, which a thousand classes of a large network make weeks of
on a CPU. A backdoor shows in less: random triggers come near its class, its gradient is steep, or it answers many
pictures.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from otbr_jax.inversion.minimal import InversionConfig, ScreenedClasses, score_family_starts
from otbr_jax.numerics.convolutions import channels_last
from otbr_jax.triggers import FamilySwitch
from otbr_jax.types import Batch, Network, Variables

UPHILL = 4
"""Images, one gradient by each for every class."""


def screen(
    network: Network,
    variables: Variables,
    batch: Batch,
    answers: jax.Array,
    switch: FamilySwitch,
    *,
    key: jax.Array,
    config: InversionConfig,
    axis_name: str | None = None,
) -> ScreenedClasses:
    """Which classes are searched, and from which random triggers. Pure; jits.

    All of them, unless there are more than `config.among`: then those that are furthest above the median of all classes
    by some family's random triggers, by how near the gradient says it is, or by how often they are the answer. Each
    counts in its standard deviations.

    Args:
      network: the functions of the network.
      variables: its variables.
      batch: `[n, h, w, c]` in [0, 1], and what the network answers them with, `[n]`.
      answers: how often each class is the answer to a picture, `[classes]`, shares.
      switch: the families.
      key: typed PRNG key: that of `minimal_triggers`.
      config: how.
      axis_name: mapped axis whose devices share the pictures of random triggers.
    """

    def one_family(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        near = score_family_starts(
            network, variables, batch, switch, index, key=key, config=config, axis_name=axis_name
        )
        return jnp.argmax(near, axis=0), jnp.max(near, axis=0)

    start, near = jax.lax.map(one_family, jnp.arange(len(switch)))
    if not 0 < config.among < network.num_classes:
        return ScreenedClasses(jnp.arange(network.num_classes), start)
    often = jnp.log(jnp.maximum(answers, 1e-3))
    seen = jnp.concatenate([near, uphill(network, variables, batch)[None], often[None]])
    apart = seen - jnp.median(seen, axis=1, keepdims=True)
    apart /= jnp.maximum(jnp.std(apart, axis=1, keepdims=True), 1e-6)
    classes = jnp.sort(jax.lax.top_k(jnp.max(apart, axis=0), config.among)[1])
    return ScreenedClasses(classes, start[:, classes])


def uphill(network: Network, variables: Variables, batch: Batch) -> jax.Array:
    """How near each class is along its gradient, `[classes]`: less the logarithm of a reach cost, up to a constant.

    The cost is that of a network that is linear around the pictures: how much less likely the class is than certain,
    over the slope of that as the same is added to all. Classes are asked one after the other.

    Args:
      network: the functions of the network.
      variables: its variables.
      batch: `[n, h, w, c]` in [0, 1], and what the network answers them with, `[n]`.
    """
    few, labels = batch.images[:UPHILL], batch.labels[:UPHILL]

    def missing(added: jax.Array, target: jax.Array) -> jax.Array:
        logits = network.answer(variables, few + added).astype(jnp.float32)
        others = labels != target
        return -jnp.sum(jax.nn.log_softmax(logits)[:, target] * others) / jnp.maximum(jnp.sum(others), 1)

    gradient = channels_last(jax.value_and_grad(missing))

    def one(target: jax.Array) -> jax.Array:
        gap, slope = gradient(jnp.zeros(few.shape[1:]), target)
        return 0.5 * jnp.log(jnp.sum(slope**2) + 1e-12) - jnp.log(gap + 1e-6)

    return jax.lax.map(one, jnp.arange(network.num_classes))
