"""What evidence is: a number for each class, higher for a class that looks like the attacker's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.inversion import InvertedTriggers


class Predictions(NamedTuple):
    """How far a network's predictions agree with the suspicious network's; leading axes for several networks.

    Attributes:
      agreement: `[classes]`, of the images predicted as a class, the share that still is; 1 for a class without any.
      success: `[classes]`, the success rate of each class's patch on images of other classes.
    """

    agreement: jax.Array
    success: jax.Array


class Observations(NamedTuple):
    """What evidence is computed from.

    Attributes:
      triggers: of the suspicious network, `{family: InvertedTriggers}`, a trigger for each class.
      predictions: `[settings, classes]`, of networks with more and more neurons pruned and fused.
      agreement: the least share of images that keep their prediction; settings below it are no evidence, in [0, 1].
    """

    triggers: Mapping[str, InvertedTriggers]
    predictions: Predictions
    agreement: float


class Evidence(NamedTuple):
    """One kind of evidence about each class.

    Attributes:
      name: as settings and rows of results name it.
      weight: its weight in the sum of all.
      of: `Observations -> [classes]`, higher for a class that is more likely the attacker's. Pure; jits.
    """

    name: str
    weight: float
    of: Callable[[Observations], jax.Array]


def relative(values: jax.Array) -> jax.Array:
    """Values `[settings, classes]` over the median of each setting; 1 where that is 0."""
    middle = jnp.median(values, axis=1, keepdims=True)
    return jnp.where(middle > 0, values / jnp.where(middle > 0, middle, 1.0), 1.0)
