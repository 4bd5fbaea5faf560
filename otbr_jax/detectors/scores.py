"""Scores of networks by their neurons' activeness and weight changes, and the ROC curve of a score.

Every score is one number for a network, higher for one that is more likely backdoored, and needs no trigger.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.errors import InputError
from otbr_jax.steps.score import Scores


class DetectionScores(NamedTuple):
    """Scores of one network, float32 scalars.

    Attributes:
      average_activeness: of the last layer's neurons.
      maximum_activeness: of the same.
      maximum_over_median: of the same, see `maximum_over_median`.
      nwc_top_1_percent: share of all weight changes that the 1 % of the neurons with the largest ones hold.
      nwc_top_5_percent: the same of 5 %.
      nwc_gini: inequality of the weight changes of all neurons.
    """

    average_activeness: jax.Array
    maximum_activeness: jax.Array
    maximum_over_median: jax.Array
    nwc_top_1_percent: jax.Array
    nwc_top_5_percent: jax.Array
    nwc_gini: jax.Array


def detection_scores(activeness: Scores, nwc: Scores) -> DetectionScores:
    """All scores of a network.

    Args:
      activeness: mean activeness, `{layer name: [neurons]}`, in execution order.
      nwc: neuron weight changes of the same unlearning.

    Raises:
      InputError: if either has no layers.

    Source: the first two are TSBD's observation 2; the others measure how few neurons have most of it.
    """
    for name, scores in (("activeness", activeness), ("nwc", nwc)):
        if not scores:
            raise InputError(f"{name}: expected scores of at least one layer, found none")
    last = list(activeness.values())[-1]
    together = jnp.concatenate([jnp.ravel(score) for score in nwc.values()])
    return DetectionScores(
        average_activeness=jnp.mean(last),
        maximum_activeness=jnp.max(last),
        maximum_over_median=maximum_over_median(last),
        nwc_top_1_percent=top_share(together, top=0.01),
        nwc_top_5_percent=top_share(together, top=0.05),
        nwc_gini=gini(together),
    )


def maximum_over_median(values: jax.Array) -> jax.Array:
    """The largest of the values `[n]`, all at least 0, over their median.

    1 where all are zero, infinity where only the median is.
    """
    largest, median = jnp.max(values), jnp.median(values)
    ratio = largest / jnp.where(median > 0, median, 1.0)
    return jnp.where(median > 0, ratio, jnp.where(largest > 0, jnp.inf, 1.0))


def top_share(values: jax.Array, *, top: float) -> jax.Array:
    """Share of the sum of the values `[n]`, all at least 0, that the largest share `top` of them holds, in (0, 1].

    At least one value counts; where all are zero it is what equal values hold. Raises InputError if `top` is not in
    (0, 1].
    """
    if not 0 < top <= 1:
        raise InputError(f"top: expected a share of neurons in (0, 1], found {top}")
    count = max(1, round(top * values.size))
    values = _shares(values)
    return jnp.sum(jax.lax.top_k(values, count)[0])


def gini(values: jax.Array) -> jax.Array:
    """Gini coefficient of the values `[n]`, all at least 0: 0 where they are equal, `1 - 1/n` where one holds all."""
    count = values.size
    places = jnp.arange(1, count + 1)
    return jnp.sum((2 * places - count - 1) * jnp.sort(_shares(values))) / count


def _shares(values: jax.Array) -> jax.Array:
    """Values over their sum; equal ones where all are zero. Scaled first: sums of small values leave float32."""
    largest = jnp.max(values)
    scaled = jnp.where(largest > 0, values / jnp.where(largest > 0, largest, 1.0), 1.0)
    return scaled / jnp.sum(scaled)


class ROC(NamedTuple):
    """The rates of a detector at every threshold, from one that flags no network to one that flags all.

    Attributes:
      false_positive_rate: `[n + 1]`, share of the clean networks that are flagged, from 0 to 1.
      true_positive_rate: `[n + 1]`, share of the backdoored ones; networks of equal scores repeat a point.
      auc: chance that a backdoored network scores higher than a clean one, ties counting half (Mann-Whitney): the area
        under the curve of straight lines through the points.
    """

    false_positive_rate: jax.Array
    true_positive_rate: jax.Array
    auc: jax.Array


def roc(scores: jax.Array, backdoored: jax.Array) -> ROC:
    """Receiver operating characteristic of a score; jits.

    Args:
      scores: `[n]`, higher for networks that are more likely backdoored; may be infinite.
      backdoored: bool `[n]`, which networks are.

    Returns:
      The curve; NaN throughout if a score is NaN, and what needs networks of a kind is NaN without any of it.

    Raises:
      InputError: if the arguments are of other shapes or kinds, or there are no networks.
    """
    scores, backdoored = jnp.asarray(scores), jnp.asarray(backdoored)
    if scores.ndim != 1 or scores.shape != backdoored.shape or not scores.size:
        raise InputError(
            f"scores, backdoored: expected one of each for every network, found {scores.shape} and {backdoored.shape}"
        )
    if backdoored.dtype != bool:
        raise InputError(f"backdoored: expected true or false for every network, found {backdoored.dtype}")
    clean, unknown = ~backdoored, jnp.any(jnp.isnan(scores))
    positives, negatives = jnp.sum(backdoored), jnp.sum(clean)
    flagged = scores[None, :] >= -jnp.sort(-scores)[:, None]  # threshold, network

    def rate(which: jax.Array, count: jax.Array) -> jax.Array:
        counts = jnp.concatenate([jnp.zeros(1, int), jnp.sum(flagged & which, axis=1)])
        return jnp.where(unknown, jnp.nan, counts / count)

    higher, equal = scores[:, None] > scores[None, :], scores[:, None] == scores[None, :]
    wins = jnp.sum((higher + 0.5 * equal) * (backdoored[:, None] & clean[None, :]))
    auc = jnp.where(unknown, jnp.nan, wins / (positives * negatives))
    return ROC(rate(clean, negatives), rate(backdoored, positives), auc)
