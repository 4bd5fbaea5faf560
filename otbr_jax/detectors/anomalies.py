"""The attacker's class is out of line: a short cut leads to it, cheaper or further than a clean network has.

Classes differ in how easily pictures turn into them, whatever the trigger, and families in how easily they turn
anything. A backdoor is neither: it is a short cut for the kind of trigger that it was taught. How much either differs
in clean networks says how much counts.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.detectors.calibration import Usual
from otbr_jax.detectors.verdict import FEWEST, Detected

CLOSED = ("suspect", "all")
"""Whose short cuts a repair closes: those of a class that is flagged, or all, whether one is or not."""

MARGIN, ANSWERS = "margin", "answers"
"""The names of the evidence that is no family's."""

_MARGIN = 1.2  # of a lesson's budget over what the suspect costs


class Anomalies(NamedTuple):
    """What reach costs, margins and answers say of each class.

    Attributes:
      detected: the score of each class, 0 of those that were not searched. A score is how far the evidence is above the
        largest of clean networks, all kinds together: the root of the sum of squares, in standard deviations.
      classes: int `[searched]`, the classes that what follows is of.
      evidence: `[families + 2, searched]`, natural logarithms: by what factor each family is cheaper than expected, the
        largest margin is larger than other classes', and the odds of being the answer to a picture are over even.
      wanted: bool `[families, searched]`, the short cuts that are to be closed: the suspect's most telling families, if
        it is flagged; or whatever is cheaper than in clean networks.
      budget: `[families, searched]`, to teach with: between what a class costs and what classes do in the median.
    """

    detected: Detected
    classes: jax.Array
    evidence: jax.Array
    wanted: jax.Array
    budget: jax.Array


def size_anomalies(costs: jax.Array) -> jax.Array:
    """By what factor each family reaches each class more cheaply than expected, `[families, classes]`, as a logarithm.

    Expected is what the family's other classes cost, and more if the class is hard to reach by the other families
    (their upper quartile). A class that is easy by all of them gets no discount: a backdoor can be a short cut for
    several families. The model is additive in logarithms. One family alone is compared with its other classes.

    Args:
      costs: `[families, classes]`, above 0.
    """
    logarithms = jnp.log(costs)
    residual = logarithms - jnp.median(logarithms, axis=1, keepdims=True)
    count = len(costs)
    if count == 1:
        return -residual
    others = jnp.stack([jnp.percentile(jnp.delete(residual, index, axis=0), 75, axis=0) for index in range(count)])
    return jnp.maximum(others, 0.0) - residual


def unusual(evidence: jax.Array, families: tuple[str, ...], usual: Usual) -> jax.Array:
    """Evidence `[families + 2, classes]` in standard deviations from what is usual in clean networks."""
    names = (*families, MARGIN, ANSWERS)
    middle, spread = (jnp.array([usual[name][place] for name in names])[:, None] for place in (0, 1))
    return (evidence - middle) / spread


def find_anomalies(
    costs: jax.Array,
    margins: jax.Array,
    answers: jax.Array,
    *,
    usual: Usual,
    families: tuple[str, ...],
    threshold: float,
    share: float,
    budget: float,
    closed: str,
    classes: jax.Array | None = None,
    of: int | None = None,
) -> Anomalies:
    """Which class is flagged, and how it is to be taught. Pure; jits.

    Args:
      costs: reach costs, `[families, searched]`.
      margins: the largest margins, `[searched]`.
      answers: how often each class is the answer to a procedural picture, `[searched]`, shares.
      usual: the largest evidence of a class in clean networks.
      families: their names.
      threshold: the score from which a class is flagged.
      share: families with at least this share of the most telling family's evidence against the suspect are taught.
      budget: to teach with: where between a class's cost (0) and the median of all (1), as logarithms.
      closed: whose short cuts are to be closed, one of `CLOSED`.
      classes: int `[searched]`, which were searched; by default all.
      of: how many classes the network has, where these are some of them.
    """
    of = of or len(answers)
    classes = jnp.arange(of) if classes is None else classes
    middle = jnp.median(margins)
    # Where half of the classes can never be the answer, a factor over the median says nothing.
    further = jnp.where(middle > 0, jnp.log(jnp.maximum(margins, 1e-3) / jnp.where(middle > 0, middle, 1.0)), 0.0)
    often = jnp.clip(answers, 1e-3, 1 - 1e-3)
    odds = jnp.log(often / (1 - often)) + jnp.log(of - 1.0)
    evidence = jnp.concatenate([size_anomalies(costs), further[None], odds[None]])
    deviations = unusual(evidence, families, usual)
    scores = jnp.sqrt(jnp.sum(jnp.maximum(deviations, 0) ** 2, axis=0))
    place = jnp.argmax(scores)
    flagged = (scores[place] >= threshold) & (len(answers) >= FEWEST)
    telling = deviations[: len(families)]
    budgets = jnp.maximum(costs ** (1 - budget) * jnp.median(costs, axis=1, keepdims=True) ** budget, _MARGIN * costs)
    best = jnp.max(telling[:, place])
    of_suspect = jnp.where(best > 0, telling >= share * best, telling >= best) & flagged
    wanted = telling > 0 if closed == "all" else of_suspect & (jnp.arange(costs.shape[1]) == place)
    detected = Detected(jnp.zeros(of).at[classes].set(scores), classes[place], flagged)
    return Anomalies(detected, classes, evidence, wanted, budgets)
