"""Metrics of a repair: ACC, ASR, RA and DER."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Metrics(NamedTuple):
    """All fractions in [0, 1].

    Attributes:
      acc: accuracy on clean test images.
      asr: share of triggered images of other classes that are predicted as the attacker's class.
      ra: share of the same triggered images that are predicted as their true class.
    """

    acc: jax.Array
    asr: jax.Array
    ra: jax.Array


def evaluate_predictions(
    clean: jax.Array, triggered: jax.Array, labels: jax.Array, *, target: int | jax.Array
) -> Metrics:
    """ACC, ASR and RA from predictions.

    Args:
      clean: int `[n]`, predicted classes of the clean test images.
      triggered: int `[n]`, predicted classes of the same images with the trigger.
      labels: int `[n]`, true classes.
      target: the attacker's class, or int `[n]`, the class for each image; images that truly belong to it count for ACC
        only.

    Returns:
      The metrics, float32 scalars.
    """
    others = labels != target
    count = jnp.maximum(jnp.sum(others), 1)
    return Metrics(
        acc=jnp.mean(clean == labels),
        asr=jnp.sum(others & (triggered == target)) / count,
        ra=jnp.sum(others & (triggered == labels)) / count,
    )


def defense_effectiveness(before: Metrics, after: Metrics) -> jax.Array:
    """DER = (max(0, ASR drop) - max(0, ACC drop) + 1) / 2, in [0, 1]; 1 is best, 0.5 is no change."""
    asr_drop = jnp.maximum(0.0, before.asr - after.asr)
    acc_drop = jnp.maximum(0.0, before.acc - after.acc)
    return (asr_drop - acc_drop + 1) / 2


def rounded(value: Any) -> float:
    """A number rounded to six decimals, as in result rows."""
    return round(float(value), 6)
