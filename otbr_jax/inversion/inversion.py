"""Trigger inversion: from a network and images to what turns them into a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from otbr_jax.inversion.aims import Aim, TriggerMetrics
from otbr_jax.inversion.descent import Descent, descend
from otbr_jax.inversion.starts import random_starts, score_starts, step_batch
from otbr_jax.inversion.success import seen
from otbr_jax.triggers import TriggerFamily
from otbr_jax.types import Batch, Network, Variables

ADAM = optax.scale_by_adam()
_LATE = 8  # steps at the end whose success rates count


class InvertedTriggers(NamedTuple):
    """Triggers that were found; every array has a leading axis where there are several.

    Attributes:
      parameters: what their family's `apply` takes.
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
    images: Batch,
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

    Guarantee: touches no data but `images`.

    Args:
      starts: a latent of the family for each target, or a `Descent` that goes on from where it stands.
      network: the functions of the network.
      variables: its variables.
      images: `[n, h, w, c]` in [0, 1], clean or made, and what the network answers them with, int `[n]`.
      family: what a trigger can be.
      targets: the class, or `[k]` for k triggers at once; may be traced.
      aim: what is sought.
      steps: how many.
      batch_size: images of a step, in turn; by default all of them in each.
      optimizer: gradients to updates of rate 1; the family has the rate. Each trigger has a state of its own.
      first: the number of the first step, for a descent that goes on.
      axis_name: mapped axis whose devices share each step's images.
      name: of the setting that `batch_size` is, for errors.
      on_step: called on the host after each step; None traces no callback.

    Returns:
      What was found, with success rates over the last eight steps; and where the descent stands.

    Raises:
      InputError: if the devices of the axis cannot share the images of a step.
    """
    each = _each(targets)
    if not isinstance(starts, Descent):
        starts = begin(starts, family, targets, aim=aim, optimizer=optimizer)

    def loss(latents: Any, batch: Batch, state: Any) -> tuple[jax.Array, TriggerMetrics]:
        parameters = each(family.parameters)(latents)
        trigger = family.trigger(parameters, each(aim.budget)(state))
        found = seen(network, variables, batch, trigger, targets, axis_name=axis_name)
        prices = each(lambda state, own: aim.price(state, family, own))(state, parameters)
        return jnp.sum(found.loss) + jnp.sum(prices), found

    def follow(state: Any, latents: Any, found: TriggerMetrics, number: jax.Array) -> tuple[Any, jax.Array]:
        def one(state: Any, latent: Any, found: TriggerMetrics) -> Any:
            return aim.follow(state, family, family.parameters(latent), found, number)

        return each(one)(state, latents, found), found.success

    descent, success = descend(
        loss,
        starts,
        optimizer=_rated(optimizer, family, targets),
        steps=steps,
        batches=lambda number: step_batch(images, number, batch_size, axis_name, name=name),
        follow=follow,
        has_aux=True,
        first=first,
        axis_name=axis_name,
        on_step=on_step,
    )
    end = each(lambda state, latent: aim.end(state, family, family.parameters(latent)))
    found, size = end(descent.state, descent.point)
    return InvertedTriggers(found, size, jnp.mean(success[-_LATE:], axis=0)), descent


def begin(
    starts: Any,
    family: TriggerFamily,
    targets: jax.Array | int,
    *,
    aim: Aim,
    optimizer: optax.GradientTransformation = ADAM,
) -> Descent:
    """Where `invert_from` begins, of which it takes the arguments."""
    state = _each(targets)(lambda latent: aim.begin(family, family.parameters(latent)))(starts)
    return Descent(starts, _rated(optimizer, family, targets).init(starts), state)


def _each(targets: jax.Array | int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What makes a function of one trigger one of all triggers."""
    return jax.vmap if jnp.ndim(targets) else lambda function: function


def _rated(
    optimizer: optax.GradientTransformation, family: TriggerFamily, targets: jax.Array | int
) -> optax.GradientTransformation:
    """The optimizer at the family's rate, with a state for each trigger."""
    each, rated = _each(targets), optax.chain(optimizer, optax.scale(-family.learning_rate))
    return optax.GradientTransformation(
        each(rated.init), lambda updates, state, params=None: each(rated.update)(updates, state, params)
    )


def invert_triggers(
    network: Network,
    variables: Variables,
    images: Batch,
    family: TriggerFamily,
    target: jax.Array | int,
    *,
    aim: Aim,
    steps: int,
    triggers: int,
    starts: int,
    key: jax.Array,
    known: Any = None,
    batch_size: int | None = None,
    axis_name: str | None = None,
    name: str = "batch_size",
    on_step: Callable[[], None] | None = None,
) -> tuple[InvertedTriggers, Descent]:
    """Inverts several triggers of one class, each from its own start. Pure; jits.

    Every other one starts from the random triggers that come nearest to the class, the rest from any: what is nearest
    at first is not always the way in. Takes what `invert_from` takes, but for:

    Args:
      network: see there.
      variables: see there.
      images: see there.
      family: see there.
      target: one class; may be traced.
      aim: see there.
      steps: see there.
      triggers: how many.
      starts: how many random triggers are tried first; at least as many as triggers are.
      key: typed PRNG key of the starts.
      known: a latent, where the first trigger starts; None for none.
      batch_size: see there; as many images are the random triggers tried on.
      axis_name: see there.
      name: see there.
      on_step: see there.

    Returns:
      As `invert_from`, with a leading axis `[triggers]`.
    """
    tried = random_starts(family, network.image_shape, count=max(starts, triggers), key=key)
    budget = aim.budget(aim.begin(family, None))
    few = step_batch(images, 0, batch_size, axis_name, name=name)
    near = score_starts(network, variables, few, family, tried, budget=budget, axis_name=axis_name)
    nearest = jax.lax.top_k(near[:, target], triggers)[1]
    chosen = jnp.where(jnp.arange(triggers) % 2 == 0, nearest, jnp.arange(triggers))
    begun = jax.tree.map(lambda leaf: leaf[chosen], tried)
    if known is not None:
        begun = jax.tree.map(lambda leaf, own: leaf.at[0].set(own), begun, known)
    return invert_from(
        begun,
        network,
        variables,
        images,
        family,
        jnp.full(triggers, target),
        aim=aim,
        steps=steps,
        batch_size=batch_size,
        axis_name=axis_name,
        name=name,
        on_step=on_step,
    )
