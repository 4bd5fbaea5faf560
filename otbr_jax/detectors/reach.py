"""The attacker's class is out of line: one family of triggers reaches it far more cheaply than the others suggest.

Classes differ in how easily pictures turn into them, whatever the trigger, and families in how easily they turn
anything. A backdoor is neither: it is a short cut for the kind of trigger that it was taught.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

_MARGIN = 1.2  # of a lesson's budget over what the suspect costs


class Suspicion(NamedTuple):
    """What reach costs say of each class.

    Attributes:
      evidence: `[families, classes]`, by what factor (natural logarithm) a family is cheaper than expected.
      suspicion: `[classes]`, the largest of them.
      suspect: the class with the highest suspicion.
      stands_out: whether that reaches the threshold.
      wanted: bool `[families]`, those that say most of it about the suspect.
      budget: `[families]`, to teach with: a share of what other classes cost in the median, between what the suspect
        costs and a bound.
    """

    evidence: jax.Array
    suspicion: jax.Array
    suspect: jax.Array
    stands_out: jax.Array
    wanted: jax.Array
    budget: jax.Array


def out_of_line(costs: jax.Array) -> jax.Array:
    """By what factor each family reaches each class more cheaply than expected, `[families, classes]`, as a logarithm.

    Expected is what the family costs, the median over classes, and more where the class is hard to reach by the other
    families (their upper quartile). A class that is easy by all of them gets no discount: a backdoor can be a short cut
    for several families. The model is additive in logarithms. One family alone is compared with its other classes.

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


def suspect_by_reach(
    costs: jax.Array, *, lesson: jax.Array, threshold: float, share: float, budget: float
) -> Suspicion:
    """Which class stands out, and how it is to be taught. Pure; jits.

    Args:
      costs: reach costs, `[families, classes]`.
      lesson: `[families]`, the largest budgets to teach with.
      threshold: the suspicion from which a class stands out.
      share: families with at least this share of the suspect's suspicion are taught.
      budget: to teach with, as a share of what other classes cost in the median.
    """
    evidence = out_of_line(costs)
    suspicion = jnp.max(evidence, axis=0)
    suspect = jnp.argmax(suspicion)
    least = _MARGIN * costs[:, suspect]
    budgets = jnp.maximum(jnp.minimum(budget * jnp.median(costs, axis=1), lesson), least)
    wanted = evidence[:, suspect] >= share * suspicion[suspect]
    return Suspicion(evidence, suspicion, suspect, suspicion[suspect] >= threshold, wanted, budgets)
