"""How well triggers work: success rates, from the logits of images that carry them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from otbr_jax.inversion.aims import TriggerMetrics
from otbr_jax.numerics.collectives import total
from otbr_jax.triggers import Trigger
from otbr_jax.types import Batch, Network, Variables


def success_rate(
    network: Network,
    variables: Variables,
    batch: Batch,
    trigger: Trigger,
    targets: jax.Array | int,
    *,
    axis_name: str | None = None,
) -> jax.Array:
    """The share of images of other classes that a trigger turns into its target, in [0, 1]; 0 without such images.

    Args:
      network: the functions of the network.
      variables: its variables.
      batch: images `[n, h, w, c]` in [0, 1], and their classes, int `[n]`; on a mapped axis a device's own part.
      trigger: `images -> images [n, h, w, c]`, or `[n, k, h, w, c]` for k triggers.
      targets: the class, or `[k]`; may be traced.
      axis_name: mapped axis whose devices share the images.

    Returns:
      A scalar, or `[k]`.
    """
    return trigger_metrics(network, variables, batch, trigger, targets, axis_name=axis_name).success


def trigger_metrics(
    network: Network,
    variables: Variables,
    batch: Batch,
    trigger: Trigger,
    targets: jax.Array | int,
    *,
    axis_name: str | None = None,
) -> TriggerMetrics:
    """The success rate, and the target's mean cross-entropy on the same images; arguments as of `success_rate`."""
    logits, targets = logits_with(network, variables, batch.images, trigger), jnp.asarray(targets)
    goals = jnp.broadcast_to(targets, logits.shape[:-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, goals)
    others = (batch.labels.reshape(-1, *[1] * targets.ndim) != targets).astype(jnp.float32)
    turned = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
    sums = (jnp.sum(losses * others, axis=0), jnp.sum(turned * others, axis=0), jnp.sum(others, axis=0))
    loss, share, count = total(sums, axis_name)
    return TriggerMetrics(loss / jnp.maximum(count, 1.0), share / jnp.maximum(count, 1.0))


def logits_with(network: Network, variables: Variables, images: jax.Array, trigger: Trigger) -> jax.Array:
    """Logits `[n, classes]`, or `[n, k, classes]` for k triggers, float32, of images `[n, h, w, c]` that carry them.

    The network sees k triggers as one batch, image by image. So devices that share the images share the batch, too.
    """
    triggered = trigger(images)
    logits = network.answer(variables, triggered.reshape(-1, *images.shape[1:])).astype(jnp.float32)
    return logits.reshape(*triggered.shape[:-3], -1)
