"""What evidence is: how much a search found of what the attacker's class of a network has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.inversion import InvertedTriggers


class Answers(NamedTuple):
    """How a network answers the images that were made from the original; leading axes for several networks.

    Attributes:
      agreement: `[classes]`, of the images that the original gives a class, the share that keeps it; 1 without any.
      success: `[classes]`, of the images of other classes, the share that a class's patch turns into it.
    """

    agreement: jax.Array
    success: jax.Array


class Observed(NamedTuple):
    """What evidence is made of.

    Attributes:
      triggers: of the suspicious network, `{family: InvertedTriggers}`, a trigger for each class.
      along: `[settings, classes]`, of networks with more and more neurons pruned and fused.
      agreement: settings at which fewer of the images keep their answer say nothing about single classes, in [0, 1].
    """

    triggers: Mapping[str, InvertedTriggers]
    along: Answers
    agreement: float


class Evidence(NamedTuple):
    """One kind of evidence about each class.

    Attributes:
      name: as settings and rows of results name it.
      weight: of it in the sum of all.
      of: `Observed -> [classes]`, higher for a class that is more likely the attacker's. Pure; jits.
    """

    name: str
    weight: float
    of: Callable[[Observed], jax.Array]


def relative(values: jax.Array) -> jax.Array:
    """Values `[settings, classes]` over the median of each setting; 1 where that is 0."""
    middle = jnp.median(values, axis=1, keepdims=True)
    return jnp.where(middle > 0, values / jnp.where(middle > 0, middle, 1.0), 1.0)
