"""`TriggerFamily`: anything that changes an image, within a budget or with its size penalised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Trigger = Callable[[jax.Array], jax.Array]
"""`images [n, h, w, c] in [0, 1] -> images that carry it`, of the same shape; `[n, k, h, w, c]` for k triggers."""


def _identity(latent: Any) -> Any:
    return latent


class TriggerFamily(NamedTuple):
    """One kind of trigger that a defender inverts, as pure functions.

    An inversion optimises an unconstrained latent. A family with a budget scales the latent to that budget, so that
    only its direction is optimised. A family without one measures its own size, which the aim `Penalised` keeps small.

    Attributes:
      name: such as `patch`.
      unit: of a budget or a size, in words.
      init: `(key, image shape (h, w, c)) -> latent`, a pytree of float32 arrays; each key is another start.
      apply: `(images [n, h, w, c] in [0, 1], parameters, budget) -> images in [0, 1]`, changed by no more than
        `budget`, which means nothing to a family without one.
      learning_rate: of Adam on the latent.
      start: the budget that the aim `Smallest` begins with.
      bounds: the smallest and the largest budget that it tries; None for a family without a budget.
      stop_success: unlearning ends once the success rate is at most this. Unlearning patches costs little accuracy;
        unlearning triggers that change whole images costs more with every round.
      extrapolation: factor on the weight change of unlearning. An inverted patch is only part of the attacker's.
      parameters: `latent -> parameters`, which may have bounds; by default they are the latent.
      size: `parameters -> scalar`, how much of an image a trigger without a budget changes, in `unit`.
      cost: `parameters -> scalar`, what `Penalised` keeps small; by default the size.
    """

    name: str
    unit: str
    init: Callable[[jax.Array, tuple[int, int, int]], Any]
    apply: Callable[[jax.Array, Any, jax.Array], jax.Array]
    learning_rate: float | jax.Array
    start: float | jax.Array = jnp.inf
    bounds: tuple[float | jax.Array, float | jax.Array] | None = None
    stop_success: float = 0.3
    extrapolation: float = 1.0
    parameters: Callable[[Any], Any] = _identity
    size: Callable[[Any], jax.Array] | None = None
    cost: Callable[[Any], jax.Array] | None = None

    def trigger(self, parameters: Any, budget: Any = jnp.inf) -> Trigger:
        """The trigger of these parameters, at this budget; for a budget `[k]`, k triggers with a leading axis each."""
        if jnp.ndim(budget) == 0:
            return lambda images: self.apply(images, parameters, budget)
        # Image by image: devices that share the images share the triggered ones in the same way.
        return lambda images: jax.vmap(lambda own, most: self.apply(images, own, most), out_axes=1)(parameters, budget)

    def penalty(self, parameters: Any) -> jax.Array:
        """The number that `Penalised` keeps small; only for a family without a budget."""
        cost = self.cost or self.size
        assert cost is not None
        return cost(parameters)


def scale_to(change: jax.Array, budget: jax.Array, *, axes: tuple[int, ...] | None = None) -> jax.Array:
    """Scales a change to a root mean square of `budget`, over `axes` (by default all); zero stays zero."""
    return change * (budget / jnp.sqrt(jnp.mean(change**2, axis=axes, keepdims=axes is not None) + 1e-12))
