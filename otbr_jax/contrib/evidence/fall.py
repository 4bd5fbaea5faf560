"""The attacker's class falls first while neurons are pruned and fused in order of their weight change.

Its patch stops working, and images made for it stop being recognised, before those of other classes: both depend on
the neurons that are pruned first.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from otbr_jax.contrib.evidence.evidence import Evidence, Observations, relative


def fall(observations: Observations) -> jax.Array:
    """How much earlier each class falls than any other, `[classes]`, at least 0.

    It is what the class has lost, less the most that any other class has lost. The loss is `1 - mean over settings
    (share of its images that keep their prediction, times the success rate of its patch over the median of all
    classes)`. The mean is over the settings at which at least the share `agreement` of the images keeps its
    prediction, or over all if there are none.
    """
    predictions = observations.predictions
    together = jnp.mean(predictions.agreement, axis=1)
    admitted = together >= observations.agreement
    admitted = jnp.where(jnp.any(admitted), admitted, True)
    left = predictions.agreement * jnp.minimum(relative(predictions.success), 1.0)
    lost = 1 - jnp.sum(left * admitted[:, None], axis=0) / jnp.sum(admitted)
    others = jnp.max(jnp.where(jnp.eye(len(lost), dtype=bool), -jnp.inf, lost[None, :]), axis=1)
    return jnp.maximum(lost - others, 0.0)


FALL = Evidence("fall", 0.5, fall)
