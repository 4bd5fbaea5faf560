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

MARGIN = "margin"
"""The name of the evidence that is no family's."""

USUAL: Mapping[str, tuple[float, float]] = {
    "patch": (0.60, 0.20),
    "additive": (0.35, 0.15),
    "low_frequency": (0.35, 0.15),
    "wave": (0.80, 0.25),
    "warp": (0.30, 0.30),
    "generator": (1.30, 0.35),
    MARGIN: (0.38, 0.14),
}
"""The largest evidence of a class in clean networks, mean and standard deviation, by kind.

From the calibration networks of results/bench_disarm.jsonl; `launch.calibrate` prints them.
"""

_MARGIN = 1.2  # of a lesson's budget over what the suspect costs


class Suspicion(NamedTuple):
    """What reach costs and margins say of each class.

    Attributes:
      evidence: `[families + 1, classes]`, by what factor (natural logarithm) each family is cheaper than expected, and
        last the largest margin is larger than other classes'.
      suspicion: `[classes]`, the largest evidence, in standard deviations from what is usual in clean networks.
      suspect: the class with the highest suspicion.
      stands_out: whether that reaches the threshold.
      wanted: bool `[families]`, those that say most of it about the suspect.
      budget: `[families]`, to teach with: between what the suspect costs and what other classes do in the median.
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
    """Evidence `[families + 1, classes]` in standard deviations from the largest in clean networks."""
    usual, spread = (jnp.array([USUAL[name][place] for name in (*families, MARGIN)])[:, None] for place in (0, 1))
    return (evidence - usual) / spread


def suspect_by_short_cuts(
    costs: jax.Array, margins: jax.Array, *, families: tuple[str, ...], threshold: float, share: float, budget: float
) -> Suspicion:
    """Which class stands out, and how it is to be taught. Pure; jits.

    Args:
      costs: reach costs, `[families, classes]`.
      margins: the largest margins, `[classes]`.
      families: their names.
      threshold: the suspicion from which a class stands out.
      share: families with at least this share of the most telling family's suspicion of the suspect are taught.
      budget: to teach with: where between the suspect's cost (0) and the median of all (1), as logarithms.
    """
    further = jnp.log(jnp.maximum(margins, 1e-3) / jnp.maximum(jnp.median(margins), 1e-3))
    evidence = jnp.concatenate([out_of_line(costs), further[None]])
    deviations = unusual(evidence, families)
    suspicion = jnp.max(deviations, axis=0)
    suspect = jnp.argmax(suspicion)
    telling = deviations[:-1, suspect]
    own = costs[:, suspect]
    budgets = jnp.maximum(own ** (1 - budget) * jnp.median(costs, axis=1) ** budget, _MARGIN * own)
    best = jnp.max(telling)
    wanted = jnp.where(best > 0, telling >= share * best, telling >= best)
    return Suspicion(evidence, suspicion, suspect, suspicion[suspect] >= threshold, wanted, budgets)
