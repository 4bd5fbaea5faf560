"""Gradient descent on what a network is given: one loop for triggers, images and inner representations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from otbr_jax.numerics.collectives import mean
from otbr_jax.numerics.convolutions import channels_last


class Descent(NamedTuple):
    """Where a descent stands.

    Attributes:
      point: what is moved, a pytree of float32 arrays.
      opt_state: the optimizer's.
      state: what `follow` remembers.
    """

    point: Any
    opt_state: Any
    state: Any


def _nothing(number: jax.Array) -> None:
    del number


def _same(point: Any) -> Any:
    return point


def _no_more(state: Any, point: Any, aux: Any, number: jax.Array) -> tuple[Any, Any]:
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
    follow: Callable[..., tuple[Any, Any]] = _no_more,
    project: Callable[[Any], Any] = _same,
    has_aux: bool = False,
    first: int = 0,
    axis_name: str | None = None,
    on_step: Callable[[], None] | None = None,
) -> tuple[Descent, Any]:
    """Descends a loss. Pure; jits.

    Args:
      loss: `(point, batch, state) -> scalar`, or `(scalar, aux)` with `has_aux`.
      start: the point where it begins, a pytree; or a `Descent` that goes on from where it stands.
      optimizer: gradients to updates.
      steps: how many.
      batches: `number of the step, int32 -> batch`; computed beside the gradient, not within it.
      state: what the loss and `follow` know beside the point, such as a budget that changes on the way.
      follow: `(state, point, aux, number) -> (state, what is kept of the step)`, with the point before the step. By
        default the state stays and all of `aux` is kept.
      project: `point -> point`, after each step: back to where points are allowed.
      has_aux: as in `jax.grad`.
      first: the number of the first step.
      axis_name: mapped axis over which gradients are averaged.
      on_step: called on the host after each step; None traces no callback.

    Returns:
      `(Descent, what was kept)`, the latter with a leading axis `[steps]`.
    """
    if not isinstance(start, Descent):
        start = Descent(start, optimizer.init(start), state)
    gradient = channels_last(jax.grad(loss, has_aux=has_aux))

    def step(now: Descent, number: jax.Array) -> tuple[Descent, Any]:
        found = gradient(now.point, batches(number), now.state)
        grads, aux = found if has_aux else (found, None)
        updates, opt_state = optimizer.update(mean(grads, axis_name), now.opt_state, now.point)
        state, kept = follow(now.state, now.point, aux, number)
        if on_step is not None:
            jax.debug.callback(on_step)
        return Descent(project(optax.apply_updates(now.point, updates)), opt_state, state), kept

    return jax.lax.scan(step, start, first + jnp.arange(steps))
