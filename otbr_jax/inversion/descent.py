"""Gradient descent on inputs of a network: one loop for triggers, images and inner representations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from otbr_jax.numerics.collectives import mean
from otbr_jax.numerics.convolutions import channels_last


class Descent(NamedTuple):
    """The state of a descent, from which it can continue.

    Attributes:
      point: the optimised variables, a pytree of float32 arrays.
      opt_state: the optimizer's state.
      state: the state that `update` keeps.
    """

    point: Any
    opt_state: Any
    state: Any


def _nothing(number: jax.Array) -> None:
    del number


def _same(point: Any) -> Any:
    return point


def _keep_all(state: Any, point: Any, aux: Any, number: jax.Array) -> tuple[Any, Any]:
    del point, number
    return state, aux


def descend(
    loss: Callable[..., Any],
    start: Any,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    batches: Callable[[jax.Array], Any] = _nothing,
    state: Any = None,
    update: Callable[..., tuple[Any, Any]] = _keep_all,
    project: Callable[[Any], Any] = _same,
    has_aux: bool = False,
    first: int = 0,
    axis_name: str | None = None,
    on_step: Callable[[], None] | None = None,
) -> tuple[Descent, Any]:
    """Descends a loss. Pure; jits.

    Args:
      loss: `(point, batch, state) -> scalar`, or `(scalar, aux)` with `has_aux`.
      start: the first point, a pytree; or a `Descent` to continue.
      optimizer: turns gradients into updates.
      steps: number of steps.
      batches: `number of the step, int32 -> batch`; evaluated outside the gradient.
      state: what the loss and `update` use beside the point, such as a budget that changes during the descent.
      update: `(state, point, aux, number) -> (state, history of the step)`, with the point before the step. By default
        the state is constant and the history is `aux`.
      project: `point -> point`, after each step: projects onto the feasible set.
      has_aux: as in `jax.grad`.
      first: the number of the first step.
      axis_name: mapped axis over which gradients are averaged.
      on_step: called on the host after each step; None traces no callback.

    Returns:
      `(Descent, history)`, the latter with a leading axis `[steps]`.
    """
    if not isinstance(start, Descent):
        start = Descent(start, optimizer.init(start), state)
    gradient_of = channels_last(jax.grad(loss, has_aux=has_aux))

    def step(descent: Descent, number: jax.Array) -> tuple[Descent, Any]:
        result = gradient_of(descent.point, batches(number), descent.state)
        grads, aux = result if has_aux else (result, None)
        updates, opt_state = optimizer.update(mean(grads, axis_name), descent.opt_state, descent.point)
        state, history = update(descent.state, descent.point, aux, number)
        if on_step is not None:
            jax.debug.callback(on_step)
        return Descent(project(optax.apply_updates(descent.point, updates)), opt_state, state), history

    return jax.lax.scan(step, start, first + jnp.arange(steps))
