"""What a family of triggers is: anything that changes a picture, within a budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class TriggerFamily(NamedTuple):
    """What a trigger that a defender searches can be; pure functions.

    A search moves a latent freely; a trigger is the latent brought to a budget, so that a search chooses a direction
    and never has to grow. A bound, unlike a penalty, keeps it from going on to ever larger triggers once the backdoor
    is gone: those are the class itself.

    Attributes:
      name: such as `patch`.
      unit: what a budget is, in words.
      init: `(key, image shape (h, w, c)) -> latent`, a pytree of float32 arrays; each key is another start.
      apply: `(images [n, h, w, c] in [0, 1], latent, budget) -> images in [0, 1]`, changed by no more than `budget`.
      learning_rate: of Adam on the latent.
      start: the budget that a search of reach costs begins with.
      bounds: the smallest and the largest budget that it tries.
      left: of the pictures, what triggers may still turn when lessons against them end. Lessons against a patch cost a
        network little; those against what changes whole pictures cost more the longer they last.
      beyond: how much further than the lessons a network goes along the way that they took it. A patch that a search
        finds is only part of the attacker's.
    """

    name: str
    unit: str
    init: Callable[[jax.Array, tuple[int, int, int]], Any]
    apply: Callable[[jax.Array, Any, jax.Array], jax.Array]
    learning_rate: float
    start: float
    bounds: tuple[float, float]
    left: float = 0.3
    beyond: float = 1.0


def scaled(change: jax.Array, budget: jax.Array, *, axes: tuple[int, ...] | None = None) -> jax.Array:
    """A change scaled to a root mean square of `budget`, over `axes` (by default all); no change stays none."""
    return change * (budget / jnp.sqrt(jnp.mean(change**2, axis=axes, keepdims=axes is not None) + 1e-12))
