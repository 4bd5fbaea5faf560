"""The attacker's class is out of line: a short cut leads to it, cheaper or further than a clean network has.

Classes differ in how easily pictures turn into them, whatever the trigger, and families in how easily they turn
anything. A backdoor is neither: it is a short cut for the kind of trigger that it was taught. How much either differs
in clean networks says how much counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

CLOSED = ("suspect", "all")
"""Whose short cuts a repair closes: those of a class that stands out, or all, whether one does or not."""

FEWEST = 3
"""Classes of which one can stand out: half of two are no majority to compare with."""

MARGIN, ANSWERS = "margin", "answers"
"""The names of the evidence that is no family's."""

USUAL: Mapping[str, tuple[float, float]] = {
    "patch": (0.68, 0.23),
    "additive": (0.51, 0.17),
    "low_frequency": (0.52, 0.15),
    "wave": (0.87, 0.28),
    "warp": (0.53, 0.30),
    "generator": (1.24, 0.31),
    MARGIN: (0.37, 0.20),
    ANSWERS: (2.26, 0.87),
}
"""The largest evidence of a class in clean networks, by kind: the median, and what is counted as a standard deviation.

Settled on 58 calibration networks of configs/bench/disarm.py as an earlier state of the search had measured them; those
rows are not kept. The deviation is 1.48 times the median distance from the median, at least 0.15; for warps and
margins, which differ more between data sets than digits show, 0.3 and 0.2. What the kept rows say: `launch.calibrate`.
"""

_MARGIN = 1.2  # of a lesson's budget over what the suspect costs


class Suspicion(NamedTuple):
    """What reach costs, margins and answers say of each class.

    Attributes:
      evidence: `[families + 2, classes]`, natural logarithms: by what factor each family is cheaper than expected, the
        largest margin is larger than other classes', and the odds of being the answer to a picture are over even.
      suspicion: `[classes]`, how far the evidence is above the largest of clean networks, all kinds together: the root
        of the sum of squares, in standard deviations.
      suspect: the class with the highest suspicion.
      stands_out: whether that reaches the threshold.
      wanted: bool `[families, classes]`, the short cuts that are to be closed: the suspect's most telling families, if
        it stands out; or whatever is cheaper than in clean networks.
      budget: `[families, classes]`, to teach with: between what a class costs and what classes do in the median.
    """

    evidence: jax.Array
    suspicion: jax.Array
    suspect: jax.Array
    stands_out: jax.Array
    wanted: jax.Array
    budget: jax.Array


def out_of_line(costs: jax.Array) -> jax.Array:
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


def unusual(evidence: jax.Array, families: tuple[str, ...]) -> jax.Array:
    """Evidence `[families + 2, classes]` in standard deviations from the largest in clean networks."""
    names = (*families, MARGIN, ANSWERS)
    usual, spread = (jnp.array([USUAL[name][place] for name in names])[:, None] for place in (0, 1))
    return (evidence - usual) / spread


def suspect_by_short_cuts(
    costs: jax.Array,
    margins: jax.Array,
    answers: jax.Array,
    *,
    families: tuple[str, ...],
    threshold: float,
    share: float,
    budget: float,
    closed: str,
    of: int | None = None,
) -> Suspicion:
    """Which class stands out, and how it is to be taught. Pure; jits.

    Args:
      costs: reach costs, `[families, classes]`.
      margins: the largest margins, `[classes]`.
      answers: how often each class is the answer to a procedural picture, `[classes]`, shares.
      families: their names.
      threshold: the suspicion from which a class stands out.
      share: families with at least this share of the most telling family's suspicion of the suspect are taught.
      budget: to teach with: where between a class's cost (0) and the median of all (1), as logarithms.
      closed: whose short cuts are to be closed, one of `CLOSED`.
      of: how many classes the network has, where these are some of them.
    """
    middle = jnp.median(margins)
    # Where half of the classes can never be the answer, a factor over the median says nothing.
    further = jnp.where(middle > 0, jnp.log(jnp.maximum(margins, 1e-3) / jnp.where(middle > 0, middle, 1.0)), 0.0)
    often = jnp.clip(answers, 1e-3, 1 - 1e-3)
    odds = jnp.log(often / (1 - often)) + jnp.log((of or len(answers)) - 1.0)
    evidence = jnp.concatenate([out_of_line(costs), further[None], odds[None]])
    deviations = unusual(evidence, families)
    suspicion = jnp.sqrt(jnp.sum(jnp.maximum(deviations, 0) ** 2, axis=0))
    suspect = jnp.argmax(suspicion)
    stands_out = (suspicion[suspect] >= threshold) & (len(answers) >= FEWEST)
    telling = deviations[: len(families)]
    budgets = jnp.maximum(costs ** (1 - budget) * jnp.median(costs, axis=1, keepdims=True) ** budget, _MARGIN * costs)
    best = jnp.max(telling[:, suspect])
    of_suspect = jnp.where(best > 0, telling >= share * best, telling >= best) & stands_out
    wanted = telling > 0 if closed == "all" else of_suspect & (jnp.arange(costs.shape[1]) == suspect)
    return Suspicion(evidence, suspicion, suspect, stands_out, wanted, budgets)
