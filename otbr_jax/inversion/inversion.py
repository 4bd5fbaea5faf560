"""Trigger inversion from given or random starts: triggers that turn images into a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from otbr_jax.inversion.aims import Aim, TriggerMetrics
from otbr_jax.inversion.descent import Descent, descend
from otbr_jax.inversion.starts import random_starts, score_starts, step_batch
from otbr_jax.inversion.success import trigger_metrics
from otbr_jax.triggers import TriggerFamily
from otbr_jax.types import Batch, Network, Variables

ADAM = optax.scale_by_adam()
_LATE = 8  # steps at the end whose success rates count


class InvertedTriggers(NamedTuple):
    """Inverted triggers; every array has a leading axis where there are several.

    Attributes:
      parameters: the arguments of their family's `apply`.
      size: in the family's unit.
      success: the success rate: the share of images of other classes that a trigger turns into its target, in [0, 1].
    """

    parameters: Any
    size: jax.Array
    success: jax.Array


def invert_from(
    starts: Any,
    network: Network,
    variables: Variables,
    batch: Batch,
    family: TriggerFamily,
    targets: jax.Array | int,
    *,
    aim: Aim,
    steps: int,
    batch_size: int | None = None,
    optimizer: optax.GradientTransformation = ADAM,
    first: int = 0,
    axis_name: str | None = None,
    name: str = "batch_size",
    on_step: Callable[[], None] | None = None,
) -> tuple[InvertedTriggers, Descent]:
    """Inverts triggers from given starts. Pure; jits.

    Guarantee: touches no data but `batch`.

    Args:
      starts: a latent of the family for each target, or a `Descent` to continue.
      network: the functions of the network.
      variables: its variables.
      batch: images `[n, h, w, c]` in [0, 1], clean or procedural, and the network's predictions for them, int `[n]`.
      family: the family of triggers.
      targets: the class, or `[k]` for k triggers at once; may be traced.
      aim: the objective.
      steps: number of steps.
      batch_size: images per step, in order; by default every step uses all images.
      optimizer: turns gradients into updates of rate 1; the family has the rate. Each trigger has its own state.
      first: the number of the first step, for a descent that continues.
      axis_name: mapped axis whose devices share each step's images.
      name: of the setting that holds `batch_size`, for errors.
      on_step: called on the host after each step; None traces no callback.

    Returns:
      The triggers, with success rates over the last eight steps, and the descent.

    Raises:
      InputError: if the devices of the axis cannot share the images of a step.
    """
    each = _each(targets)
    if not isinstance(starts, Descent):
        starts = begin(starts, family, targets, aim=aim, optimizer=optimizer)

    def loss(latents: Any, batch: Batch, state: Any) -> tuple[jax.Array, TriggerMetrics]:
        parameters = each(family.parameters)(latents)
        trigger = family.trigger(parameters, each(aim.budget)(state))
        metrics = trigger_metrics(network, variables, batch, trigger, targets, axis_name=axis_name)
        penalties = each(lambda state, own: aim.penalty(state, family, own))(state, parameters)
        return jnp.sum(metrics.loss) + jnp.sum(penalties), metrics

    def update(state: Any, latents: Any, metrics: TriggerMetrics, number: jax.Array) -> tuple[Any, jax.Array]:
        def one(state: Any, latent: Any, metrics: TriggerMetrics) -> Any:
            return aim.update(state, family, family.parameters(latent), metrics, number)

        return each(one)(state, latents, metrics), metrics.success

    descent, success = descend(
        loss,
        starts,
        optimizer=_with_rate(optimizer, family, targets),
        steps=steps,
        batches=lambda number: step_batch(batch, number, batch_size, axis_name, name=name),
        update=update,
        has_aux=True,
        first=first,
        axis_name=axis_name,
        on_step=on_step,
    )
    end = each(lambda state, latent: aim.end(state, family, family.parameters(latent)))
    parameters, size = end(descent.state, descent.point)
    return InvertedTriggers(parameters, size, jnp.mean(success[-_LATE:], axis=0)), descent


def begin(
    starts: Any,
    family: TriggerFamily,
    targets: jax.Array | int,
    *,
    aim: Aim,
    optimizer: optax.GradientTransformation = ADAM,
) -> Descent:
    """The descent with which `invert_from` begins; takes its arguments."""
    state = _each(targets)(lambda latent: aim.begin(family, family.parameters(latent)))(starts)
    return Descent(starts, _with_rate(optimizer, family, targets).init(starts), state)


def _each(targets: jax.Array | int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Maps a function of one trigger over all triggers."""
    return jax.vmap if jnp.ndim(targets) else lambda function: function


def _with_rate(
    optimizer: optax.GradientTransformation, family: TriggerFamily, targets: jax.Array | int
) -> optax.GradientTransformation:
    """The optimizer at the family's learning rate, with a state for each trigger."""
    each, scaled = _each(targets), optax.chain(optimizer, optax.scale(-family.learning_rate))
    return optax.GradientTransformation(
        each(scaled.init), lambda updates, state, params=None: each(scaled.update)(updates, state, params)
    )


def invert_triggers(
    network: Network,
    variables: Variables,
    batch: Batch,
    family: TriggerFamily,
    target: jax.Array | int,
    *,
    aim: Aim,
    steps: int,
    triggers: int,
    starts: int,
    key: jax.Array,
    first_start: Any = None,
    batch_size: int | None = None,
    axis_name: str | None = None,
    name: str = "batch_size",
    on_step: Callable[[], None] | None = None,
) -> tuple[InvertedTriggers, Descent]:
    """Inverts several triggers of one class, each from its own start. Pure; jits.

    Half of them start from the random triggers that make the class most likely, the others from any random trigger: the
    best start does not always lead to the best trigger. The arguments are those of `invert_from`, and:

    Args:
      network: see there.
      variables: see there.
      batch: see there.
      family: see there.
      target: one class; may be traced.
      aim: see there.
      steps: see there.
      triggers: number of triggers.
      starts: number of random triggers to choose from; at least `triggers`.
      key: typed PRNG key of the starts.
      first_start: a latent from which the first trigger starts; None for none.
      batch_size: see there; random triggers are scored on as many images.
      axis_name: see there.
      name: see there.
      on_step: see there.

    Returns:
      As `invert_from`, with a leading axis `[triggers]`.
    """
    candidates = random_starts(family, network.image_shape, count=max(starts, triggers), key=key)
    budget = aim.budget(aim.begin(family, None))
    few = step_batch(batch, 0, batch_size, axis_name, name=name)
    scores = score_starts(network, variables, few, family, candidates, budget=budget, axis_name=axis_name)
    best = jax.lax.top_k(scores[:, target], triggers)[1]
    chosen = jnp.where(jnp.arange(triggers) % 2 == 0, best, jnp.arange(triggers))
    first = jax.tree.map(lambda leaf: leaf[chosen], candidates)
    if first_start is not None:
        first = jax.tree.map(lambda leaf, own: leaf.at[0].set(own), first, first_start)
    return invert_from(
        first,
        network,
        variables,
        batch,
        family,
        jnp.full(triggers, target),
        aim=aim,
        steps=steps,
        batch_size=batch_size,
        axis_name=axis_name,
        name=name,
        on_step=on_step,
    )
