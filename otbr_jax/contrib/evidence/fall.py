"""The attacker's class falls first while neurons are pruned and fused in order of their weight change.

Its patch stops working, and images made for it stop being recognised, before those of other classes: both live on the
neurons that are taken first.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from otbr_jax.contrib.evidence.evidence import Evidence, Observed, relative


def fall(found: Observed) -> jax.Array:
    """How much earlier each class falls than any other, `[classes]`, at least 0.

    What it has lost more than the one that lost most of the others. What is lost is `1 - mean over settings (share of
    its images that keep their answer, times how well its patch works against the median of all classes)`, over the
    settings at which the share `agreement` of the images keeps its answer, or over all if there are none.
    """
    together = jnp.mean(found.along.agreement, axis=1)
    admitted = together >= found.agreement
    admitted = jnp.where(jnp.any(admitted), admitted, True)
    left = found.along.agreement * jnp.minimum(relative(found.along.success), 1.0)
    lost = 1 - jnp.sum(left * admitted[:, None], axis=0) / jnp.sum(admitted)
    others = jnp.max(jnp.where(jnp.eye(len(lost), dtype=bool), -jnp.inf, lost[None, :]), axis=1)
    return jnp.maximum(lost - others, 0.0)


FALL = Evidence("fall", 0.5, fall)
