"""The search for triggers: of each family, the smallest that turns images of other classes into a class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from otbr_jax.settings import field, settings
from otbr_jax.steps.convolutions import channels_last
from otbr_jax.triggers.penalised import PENALISED, PenalisedFamily
from otbr_jax.types import Batch, Network, Variables


@settings("inversion")
class InversionConfig:
    """How triggers are searched."""

    steps: int = field(default=100, at_least=1, doc="of Adam, for every class.")
    learning_rate: float = field(
        default=0.1,
        above=0,
        doc="of Adam; mask and pattern are logistic functions of what it moves, a perturbation is what it moves.",
    )
    size: float = field(
        default=10.0,
        above=0,
        doc="weight of the share of the image that the mask covers, or of a perturbation's mean square.",
    )
    images: int = field(default=100, at_least=1, doc="how many images it is searched on, at most.")


class Found(NamedTuple):
    """Triggers of one family; leading axes for several classes or starts.

    Attributes:
      parameters: of the family, see `PenalisedFamily.parameters`.
      size: in the family's unit.
      success: share of the images of other classes that the trigger turns into the class, in [0, 1].
    """

    parameters: Any
    size: jax.Array
    success: jax.Array


Searches = Mapping[str, InversionConfig]
"""How triggers of each family are searched: `{name of a family: InversionConfig}`."""


def search_classes(
    network: Network,
    variables: Variables,
    batch: Batch,
    *,
    key: jax.Array,
    searches: Searches,
    on_class: Callable[[], None] | None = None,
) -> dict[str, Found]:
    """Searches a trigger of each family for every class; `{name of the family: Found}`, arrays `[classes, ...]`.

    Takes what `search` takes; `on_class` is called on the host after each class, None traces no callback.
    """

    def one(target: jax.Array) -> dict[str, Found]:
        found = search_families(
            network, variables, batch, target, key=jax.random.fold_in(key, target), searches=searches
        )
        if on_class is not None:
            jax.debug.callback(on_class)
        return {
            name: Found(
                trigger,
                PENALISED[name].size(trigger),
                reach(network, variables, batch, target, family=PENALISED[name], parameters=trigger),
            )
            for name, trigger in found.items()
        }

    return jax.lax.map(one, jnp.arange(network.num_classes))


def search_families(
    network: Network,
    variables: Variables,
    batch: Batch,
    target: jax.Array | int,
    *,
    key: jax.Array,
    searches: Searches,
) -> dict[str, Any]:
    """The parameters of a trigger of each family for one class; takes what `search` takes."""
    keys = jax.random.split(key, len(searches))
    return {
        name: search(network, variables, batch, target, family=PENALISED[name], key=own, config=config)
        for own, (name, config) in zip(keys, searches.items(), strict=True)
    }


def search(
    network: Network,
    variables: Variables,
    batch: Batch,
    target: jax.Array | int,
    *,
    family: PenalisedFamily,
    key: jax.Array,
    config: InversionConfig,
) -> Any:
    """Searches the smallest trigger of a family that turns images into one class. Pure; jits.

    Guarantee: touches no data but `batch`.

    Args:
      network: the functions of the network.
      variables: its variables.
      batch: images `[n, h, w, c]` in [0, 1], clean or synthetic, and what the network answers them with, `[n]`; the
        first `config.images` of them are searched on.
      target: the class; may be traced.
      family: what a trigger can be.
      key: typed PRNG key: where the search starts.
      config: how triggers are searched.

    Returns:
      The trigger's parameters.
    """
    few = batch.images[: config.images]
    others = (batch.labels[: config.images] != target).astype(jnp.float32)

    def objective(latent: Any) -> jax.Array:
        trigger = family.parameters(latent)
        logits = network.answer(variables, family.apply(few, trigger)).astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.full(len(logits), target))
        return _mean(losses, others) + config.size * family.cost(trigger)

    start = family.init(key, network.image_shape, config.learning_rate)
    return family.parameters(_descend(objective, start, config=config))


def _descend(objective: Callable[[Any], jax.Array], start: Any, *, config: InversionConfig) -> Any:
    """Where Adam ends."""
    optimizer = optax.adam(config.learning_rate)
    gradient = channels_last(jax.grad(objective))

    def step(carry: Any, _: None) -> tuple[Any, None]:
        found, moments = carry
        updates, moments = optimizer.update(gradient(found), moments)
        return (optax.apply_updates(found, updates), moments), None

    (found, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), None, length=config.steps)
    return found


def reach(
    network: Network,
    variables: Variables,
    batch: Batch,
    target: jax.Array | int,
    *,
    family: PenalisedFamily,
    parameters: Any,
) -> jax.Array:
    """Share of the images of other classes that a trigger turns into `target`, in [0, 1]."""
    answers = jnp.argmax(network.answer(variables, family.apply(batch.images, parameters)), axis=-1)
    return _mean((answers == target).astype(jnp.float32), (batch.labels != target).astype(jnp.float32))


def _mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1.0)
