"""What an inversion is after: the minimal trigger, the strongest of a fixed size, or a small one at a price.

An aim is a few numbers, and functions of one trigger that say how it goes on from a step; `invert_from` maps them over
several.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.triggers import TriggerFamily


class TriggerMetrics(NamedTuple):
    """What a step saw of a trigger as it was before it: mean cross-entropy, and success rate in [0, 1]."""

    loss: jax.Array
    success: jax.Array


class Aim:
    """What an inversion is after. A state is a pytree of arrays, at least one."""

    def begin(self, family: TriggerFamily, parameters: Any) -> Any:
        """The state before the first step."""
        raise NotImplementedError

    def budget(self, state: Any) -> jax.Array:
        """At which the trigger is put on in the next step; infinite for a family without budgets."""
        raise NotImplementedError

    def price(self, state: Any, family: TriggerFamily, parameters: Any) -> jax.Array:
        """What is added to the loss."""
        del state, family, parameters
        return jnp.zeros(())

    def follow(
        self, state: Any, family: TriggerFamily, parameters: Any, seen: TriggerMetrics, number: jax.Array
    ) -> Any:
        """The state after a step; the parameters are those that were seen."""
        del family, parameters, seen, number
        return state

    def end(self, state: Any, family: TriggerFamily, parameters: Any) -> tuple[Any, jax.Array]:
        """`(parameters, size)` of what was found, by the state and the parameters after the last step."""
        raise NotImplementedError


class Minimum(NamedTuple):
    """The budget now; success rate and loss of late; the smallest budget that sufficed, infinite before any did."""

    budget: jax.Array
    success: jax.Array
    loss: jax.Array
    size: jax.Array


@dataclasses.dataclass(frozen=True)
class Smallest(Aim):
    """The minimal trigger: its budget shrinks while it works, and grows slowly while it does not.

    The size is the smallest budget at which it worked; where it never did, the budget that it had come to.

    Attributes:
      success: the success rate from which it works, a running mean over steps. A backdoor turns nearly all images, what
        makes a class in a clean network only some.
      shrink: what the budget is multiplied by after a step in which it works.
      grow: and after one in which it does not.
      ample: the success rate from which it is multiplied by `fast` instead.
      fast: see there.
      settle: steps before the budget moves.
    """

    success: float = 0.85
    shrink: float = 0.9
    grow: float = 1.04
    ample: float = 0.95
    fast: float = 0.8
    settle: int = 8

    def begin(self, family: TriggerFamily, parameters: Any) -> Minimum:
        """At the family's `start`."""
        return Minimum(jnp.asarray(family.start, jnp.float32), jnp.zeros(()), jnp.zeros(()), jnp.full((), jnp.inf))

    def budget(self, state: Minimum) -> jax.Array:
        """What it has come to."""
        return state.budget

    def follow(
        self, state: Minimum, family: TriggerFamily, parameters: Any, seen: TriggerMetrics, number: jax.Array
    ) -> Minimum:
        """The budget follows the success rate, within the family's bounds."""
        assert family.bounds is not None
        success, loss = 0.6 * state.success + 0.4 * seen.success, 0.6 * state.loss + 0.4 * seen.loss
        works = success >= self.success
        size = jnp.where(works, jnp.minimum(state.size, state.budget), state.size)
        factor = jnp.where(success >= self.ample, self.fast, jnp.where(works, self.shrink, self.grow))
        budget = jnp.clip(state.budget * jnp.where(number >= self.settle, factor, 1.0), *family.bounds)
        return Minimum(budget, success, loss, size)

    def end(self, state: Minimum, family: TriggerFamily, parameters: Any) -> tuple[Any, jax.Array]:
        """The last trigger."""
        return parameters, jnp.minimum(state.size, state.budget)


@dataclasses.dataclass(frozen=True)
class Within(Aim):
    """The strongest trigger of a fixed size.

    Attributes:
      size: its budget, in the family's unit; may be traced.
    """

    size: jax.Array | float

    def begin(self, family: TriggerFamily, parameters: Any) -> jax.Array:
        """The budget, which stays."""
        return jnp.asarray(self.size, jnp.float32)

    def budget(self, state: jax.Array) -> jax.Array:
        """As it was."""
        return state

    def end(self, state: jax.Array, family: TriggerFamily, parameters: Any) -> tuple[Any, jax.Array]:
        """The last trigger."""
        return parameters, state


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How the weight of a size changes on the way: after Neural Cleanse (Wang et al., S&P 2019).

    It is 0 until the trigger has worked for the first time, and then rises and falls so that it goes on working.

    Attributes:
      success: the success rate in a step from which a trigger works.
      multiplier: of the weight where the trigger has worked for `patience` steps; where it has not, the weight is
        divided by its 1.5th power.
      patience: steps before the weight changes.
    """

    success: float = 0.99
    multiplier: float = 2.0
    patience: int = 5


class Priced(NamedTuple):
    """The weight now; steps in a row with success, and without; the cheapest trigger that worked, and its cost."""

    weight: jax.Array
    up: jax.Array
    down: jax.Array
    best: Any
    cost: jax.Array


@dataclasses.dataclass(frozen=True)
class Penalised(Aim):
    """A small trigger, whose cost is a term of the loss; of a family without budgets.

    With a constant weight the last trigger is the answer. With a schedule it is the cheapest one that worked in a step,
    and the last one where none did.

    Attributes:
      weight: of the family's cost.
      schedule: how it changes; None for a constant one.
    """

    weight: float
    schedule: Schedule | None = None

    def begin(self, family: TriggerFamily, parameters: Any) -> Priced | jax.Array:
        """The weight; 0 and nothing that works where it changes."""
        if self.schedule is None:
            return jnp.asarray(self.weight, jnp.float32)
        none = jnp.zeros((), jnp.int32)
        return Priced(jnp.zeros(()), none, none, parameters, jnp.array(jnp.inf))

    def budget(self, state: Priced | jax.Array) -> jax.Array:
        """None."""
        return jnp.full((), jnp.inf)

    def price(self, state: Priced | jax.Array, family: TriggerFamily, parameters: Any) -> jax.Array:
        """The weight times the cost."""
        return (state.weight if isinstance(state, Priced) else state) * family.price(parameters)

    def follow(
        self, state: Priced | jax.Array, family: TriggerFamily, parameters: Any, seen: TriggerMetrics, number: jax.Array
    ) -> Priced | jax.Array:
        """The cheapest that worked is kept, and the weight follows success."""
        if not isinstance(state, Priced):
            return state
        rule = self.schedule or Schedule()
        cost, works = family.price(parameters), seen.success >= rule.success
        cheaper = works & (cost < state.cost)
        best = jax.tree.map(lambda new, old: jnp.where(cheaper, new, old), parameters, state.best)
        up, down = jnp.where(works, state.up + 1, 0), jnp.where(works, 0, state.down + 1)
        stronger, weaker = up >= rule.patience, down >= rule.patience
        raised = jnp.where(state.weight > 0, state.weight * rule.multiplier, self.weight)
        weight = jnp.where(stronger, raised, jnp.where(weaker, state.weight / rule.multiplier**1.5, state.weight))
        up, down = jnp.where(stronger, 0, up), jnp.where(weaker, 0, down)
        return Priced(weight, up, down, best, jnp.where(cheaper, cost, state.cost))

    def end(self, state: Priced | jax.Array, family: TriggerFamily, parameters: Any) -> tuple[Any, jax.Array]:
        """The cheapest that worked, or the last."""
        assert family.size is not None
        if isinstance(state, Priced):
            worked = jnp.isfinite(state.cost)
            parameters = jax.tree.map(lambda best, last: jnp.where(worked, best, last), state.best, parameters)
        return parameters, family.size(parameters)
