"""Inverts small triggers of every class, with their size as a term of the loss, as in Neural Cleanse."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from otbr_jax.inversion.aims import Penalised
from otbr_jax.inversion.inversion import InvertedTriggers, invert_from
from otbr_jax.inversion.success import success_rate
from otbr_jax.settings import field, settings
from otbr_jax.triggers import PENALISED, TriggerFamily
from otbr_jax.types import Batch, Network, Variables


@settings("penalised")
class PenalisedConfig:
    """How penalised triggers are inverted."""

    steps: int = field(default=100, at_least=1, doc="of Adam, for every class.")
    learning_rate: float = field(
        default=0.1,
        above=0,
        doc="of Adam on a perturbation, or on a mask and a pattern before the logistic function.",
    )
    size: float = field(
        default=10.0,
        above=0,
        doc="weight of the share of the image that the mask covers, or of a perturbation's mean square.",
    )
    images: int = field(default=100, at_least=1, doc="used for the inversion, at most.")


InversionConfigs = Mapping[str, PenalisedConfig]
"""How triggers of each family are inverted: `{name of a family without a budget: PenalisedConfig}`."""


def family_of(name: str, config: PenalisedConfig | None = None) -> TriggerFamily:
    """The family without a budget of that name."""
    return PENALISED[name]((config or PenalisedConfig()).learning_rate)


def invert_classes(
    network: Network,
    variables: Variables,
    batch: Batch,
    *,
    key: jax.Array,
    configs: InversionConfigs,
    on_class: Callable[[], None] | None = None,
) -> dict[str, InvertedTriggers]:
    """Inverts a trigger of each family for every class.

    Returns `{name of the family: InvertedTriggers}`, arrays `[classes, ...]`. Takes what `invert_penalised` takes;
    success rates are those on all of `batch`. `on_class` is called on the host after each class, None traces no
    callback.
    """

    def one(target: jax.Array) -> dict[str, InvertedTriggers]:
        triggers = invert_families(
            network, variables, batch, target, key=jax.random.fold_in(key, target), configs=configs
        )
        if on_class is not None:
            jax.debug.callback(on_class)
        return {
            name: each._replace(
                success=success_rate(network, variables, batch, family_of(name).trigger(each.parameters), target)
            )
            for name, each in triggers.items()
        }

    return jax.lax.map(one, jnp.arange(network.num_classes))


def invert_families(
    network: Network,
    variables: Variables,
    batch: Batch,
    target: jax.Array | int,
    *,
    key: jax.Array,
    configs: InversionConfigs,
) -> dict[str, InvertedTriggers]:
    """Inverts a trigger of each family for one class; takes what `invert_penalised` takes."""
    keys = jax.random.split(key, len(configs))
    return {
        name: invert_penalised(network, variables, batch, target, family=name, key=own, config=config)
        for own, (name, config) in zip(keys, configs.items(), strict=True)
    }


def invert_penalised(
    network: Network,
    variables: Variables,
    batch: Batch,
    target: jax.Array | int,
    *,
    family: str,
    key: jax.Array,
    config: PenalisedConfig,
) -> InvertedTriggers:
    """Inverts a small trigger of a family without a budget. Pure; jits.

    Guarantee: touches no data but `batch`.

    Args:
      network: the functions of the network.
      variables: its variables.
      batch: images `[n, h, w, c]` in [0, 1], clean or procedural, and the network's predictions for them, `[n]`; the
        first `config.images` are used.
      target: the class; may be traced.
      family: its name, one of `otbr_jax.triggers.PENALISED`.
      key: typed PRNG key of the start.
      config: the settings.
    """
    few, kind = Batch(batch.images[: config.images], batch.labels[: config.images]), family_of(family, config)
    start, aim = kind.init(key, network.image_shape), Penalised(config.size)
    return invert_from(start, network, variables, few, kind, target, aim=aim, steps=config.steps)[0]
