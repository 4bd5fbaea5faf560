"""Aims of trigger inversion: a minimal trigger, a trigger of a fixed size, or one whose size is penalised.

An aim holds a few numbers, and functions that update the state of one trigger after a step. `invert_from` maps them
over several triggers.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.triggers import TriggerFamily


class TriggerMetrics(NamedTuple):
    """Metrics of a trigger before a step: mean cross-entropy, and success rate in [0, 1]."""

    loss: jax.Array
    success: jax.Array


class Aim:
    """The objective of an inversion. Its state is a pytree of at least one array."""

    def begin(self, family: TriggerFamily, parameters: Any) -> Any:
        """The state before the first step."""
        raise NotImplementedError

    def budget(self, state: Any) -> jax.Array:
        """The budget of the trigger in the next step; infinite for a family without budgets."""
        raise NotImplementedError

    def penalty(self, state: Any, family: TriggerFamily, parameters: Any) -> jax.Array:
        """The term that is added to the loss."""
        del state, family, parameters
        return jnp.zeros(())

    def update(
        self, state: Any, family: TriggerFamily, parameters: Any, metrics: TriggerMetrics, number: jax.Array
    ) -> Any:
        """The state after a step; the metrics are those of the given parameters, before the step."""
        del family, parameters, metrics, number
        return state

    def end(self, state: Any, family: TriggerFamily, parameters: Any) -> tuple[Any, jax.Array]:
        """`(parameters, size)` of the result, from the state and the parameters after the last step."""
        raise NotImplementedError


class Minimum(NamedTuple):
    """The budget, running means of success rate and loss, and the smallest budget that worked, infinite at first."""

    budget: jax.Array
    success: jax.Array
    loss: jax.Array
    size: jax.Array


@dataclasses.dataclass(frozen=True)
class Smallest(Aim):
    """The minimal trigger: its budget shrinks while it works, and grows slowly while it does not.

    The size is the smallest budget at which it worked; where it never did, the last budget.

    Attributes:
      success: a trigger works if the running mean of its success rate is at least this. A backdoor trigger turns nearly
        all images; in a clean network a trigger turns only some.
      shrink: factor on the budget after a step in which the trigger works.
      grow: factor after a step in which it does not.
      ample: success rate from which the factor is `fast`.
      fast: the factor while the trigger works easily.
      settle: steps before the budget changes.
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
        """The current budget."""
        return state.budget

    def update(
        self, state: Minimum, family: TriggerFamily, parameters: Any, metrics: TriggerMetrics, number: jax.Array
    ) -> Minimum:
        """The budget follows the success rate, within the family's bounds."""
        assert family.bounds is not None
        success, loss = 0.6 * state.success + 0.4 * metrics.success, 0.6 * state.loss + 0.4 * metrics.loss
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
    """The trigger of a fixed size that works best.

    Attributes:
      size: its budget, in the family's unit; may be traced.
    """

    size: jax.Array | float

    def begin(self, family: TriggerFamily, parameters: Any) -> jax.Array:
        """The budget, which is constant."""
        return jnp.asarray(self.size, jnp.float32)

    def budget(self, state: jax.Array) -> jax.Array:
        """The fixed budget."""
        return state

    def end(self, state: jax.Array, family: TriggerFamily, parameters: Any) -> tuple[Any, jax.Array]:
        """The last trigger."""
        return parameters, state


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How the weight of the size changes during an inversion, after Neural Cleanse (Wang et al., S&P 2019).

    It is 0 until the trigger works for the first time. It then rises while the trigger works, and falls while it fails.

    Attributes:
      success: a trigger works in a step if its success rate is at least this.
      multiplier: factor on the weight after `patience` steps in which the trigger worked; after as many in which it
        failed, the weight is divided by `multiplier ** 1.5`.
      patience: steps before the weight changes.
    """

    success: float = 0.99
    multiplier: float = 2.0
    patience: int = 5


class PenaltyState(NamedTuple):
    """The weight; steps in a row that worked, and that failed; the cheapest trigger that worked, and its penalty."""

    weight: jax.Array
    up: jax.Array
    down: jax.Array
    best: Any
    lowest: jax.Array


@dataclasses.dataclass(frozen=True)
class Penalised(Aim):
    """A trigger whose size is a term of the loss; of a family without budgets.

    With a constant weight the result is the last trigger. With a schedule it is the trigger of the lowest penalty that
    worked in a step, or the last one if none did.

    Attributes:
      weight: of the family's penalty.
      schedule: how the weight changes; None for a constant weight.
    """

    weight: float
    schedule: Schedule | None = None

    def begin(self, family: TriggerFamily, parameters: Any) -> PenaltyState | jax.Array:
        """The constant weight; with a schedule the weight 0, and no trigger that worked."""
        if self.schedule is None:
            return jnp.asarray(self.weight, jnp.float32)
        none = jnp.zeros((), jnp.int32)
        return PenaltyState(jnp.zeros(()), none, none, parameters, jnp.array(jnp.inf))

    def budget(self, state: PenaltyState | jax.Array) -> jax.Array:
        """Infinite: the family has no budget."""
        return jnp.full((), jnp.inf)

    def penalty(self, state: PenaltyState | jax.Array, family: TriggerFamily, parameters: Any) -> jax.Array:
        """The weight times the family's penalty."""
        return (state.weight if isinstance(state, PenaltyState) else state) * family.penalty(parameters)

    def update(
        self,
        state: PenaltyState | jax.Array,
        family: TriggerFamily,
        parameters: Any,
        metrics: TriggerMetrics,
        number: jax.Array,
    ) -> PenaltyState | jax.Array:
        """Keeps the trigger of the lowest penalty that worked, and changes the weight by the schedule."""
        if not isinstance(state, PenaltyState):
            return state
        schedule = self.schedule or Schedule()
        penalty, works = family.penalty(parameters), metrics.success >= schedule.success
        better = works & (penalty < state.lowest)
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), parameters, state.best)
        up, down = jnp.where(works, state.up + 1, 0), jnp.where(works, 0, state.down + 1)
        increase, decrease = up >= schedule.patience, down >= schedule.patience
        raised = jnp.where(state.weight > 0, state.weight * schedule.multiplier, self.weight)
        weight = jnp.where(increase, raised, jnp.where(decrease, state.weight / schedule.multiplier**1.5, state.weight))
        up, down = jnp.where(increase, 0, up), jnp.where(decrease, 0, down)
        return PenaltyState(weight, up, down, best, jnp.where(better, penalty, state.lowest))

    def end(self, state: PenaltyState | jax.Array, family: TriggerFamily, parameters: Any) -> tuple[Any, jax.Array]:
        """The trigger of the lowest penalty that worked, or the last one."""
        assert family.size is not None
        if isinstance(state, PenaltyState):
            worked = jnp.isfinite(state.lowest)
            parameters = jax.tree.map(lambda best, last: jnp.where(worked, best, last), state.best, parameters)
        return parameters, family.size(parameters)
