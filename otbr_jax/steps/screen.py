"""Screening: cheap evidence selects the classes for which triggers are inverted.

Trigger inversion takes hundreds of gradients for each class: weeks on a CPU for a thousand classes of a large network.
A backdoor also shows in cheaper evidence: random triggers make its target likely, the gradient towards it is steep, or
many images are predicted as it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from otbr_jax.inversion.minimal import InversionConfig, ScreenedClasses, score_family_starts
from otbr_jax.numerics.convolutions import channels_last
from otbr_jax.triggers import FamilySwitch
from otbr_jax.types import Batch, Network, Variables

UPHILL = 4
"""Images of `uphill`: one gradient for each image and class."""


def screen(
    network: Network,
    variables: Variables,
    batch: Batch,
    shares: jax.Array,
    switch: FamilySwitch,
    *,
    key: jax.Array,
    config: InversionConfig,
    axis_name: str | None = None,
) -> ScreenedClasses:
    """The classes for which triggers are inverted, and the random triggers that are their starts. Pure; jits.

    All classes, unless there are more than `config.among`: then those with the largest score. A score is the largest
    deviation from the median of all classes, in standard deviations, over three kinds of evidence: the random triggers
    of each family, the gradient towards the class, and the share of images that are predicted as it.

    Args:
      network: the functions of the network.
      variables: its variables.
      batch: images `[n, h, w, c]` in [0, 1] and the network's predictions for them, `[n]`.
      shares: share of images that are predicted as each class, `[classes]`.
      switch: the families.
      key: typed PRNG key: that of `minimal_triggers`.
      config: the settings.
      axis_name: mapped axis whose devices share the images of random triggers.
    """

    def one_family(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores = score_family_starts(
            network, variables, batch, switch, index, key=key, config=config, axis_name=axis_name
        )
        return jnp.argmax(scores, axis=0), jnp.max(scores, axis=0)

    start, best = jax.lax.map(one_family, jnp.arange(len(switch)))
    if not 0 < config.among < network.num_classes:
        return ScreenedClasses(jnp.arange(network.num_classes), start)
    log_shares = jnp.log(jnp.maximum(shares, 1e-3))
    evidence = jnp.concatenate([best, uphill(network, variables, batch)[None], log_shares[None]])
    deviations = evidence - jnp.median(evidence, axis=1, keepdims=True)
    deviations /= jnp.maximum(jnp.std(deviations, axis=1, keepdims=True), 1e-6)
    classes = jnp.sort(jax.lax.top_k(jnp.max(deviations, axis=0), config.among)[1])
    return ScreenedClasses(classes, start[:, classes])


def uphill(network: Network, variables: Variables, batch: Batch) -> jax.Array:
    """Steepness of the gradient towards each class, `[classes]`: minus the log of a trigger size, up to a constant.

    The size is that of an additive trigger for a network that is linear around the images: the cross-entropy of the
    class over the norm of its gradient, with respect to one pattern added to all. One class follows another.

    Args:
      network: the functions of the network.
      variables: its variables.
      batch: images `[n, h, w, c]` in [0, 1] and the network's predictions for them, `[n]`.
    """
    few, labels = batch.images[:UPHILL], batch.labels[:UPHILL]

    def loss(added: jax.Array, target: jax.Array) -> jax.Array:
        logits = network.answer(variables, few + added).astype(jnp.float32)
        others = labels != target
        return -jnp.sum(jax.nn.log_softmax(logits)[:, target] * others) / jnp.maximum(jnp.sum(others), 1)

    loss_and_grad = channels_last(jax.value_and_grad(loss))

    def one(target: jax.Array) -> jax.Array:
        value, grad = loss_and_grad(jnp.zeros(few.shape[1:]), target)
        return 0.5 * jnp.log(jnp.sum(grad**2) + 1e-12) - jnp.log(value + 1e-6)

    return jax.lax.map(one, jnp.arange(network.num_classes))
