"""Largest margins: how far above all other logits any picture at all can lift a class.

A backdoor lifts its class far above what natural features do, whatever its trigger looks like (MM-BD: Wang, Xiang,
Miller, Kesidis, S&P 2024, arXiv 2205.06900).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from otbr_jax.inversion import descend
from otbr_jax.numerics.collectives import largest, own_part
from otbr_jax.settings import field, settings
from otbr_jax.types import Network, Variables


@settings("margin")
class MarginConfig:
    """How the largest margins are searched."""

    steps: int = field(default=60, at_least=1, doc="of Adam.")
    images: int = field(default=8, at_least=1, doc="for each class, from as many random starts.")
    learning_rate: float = field(default=0.15, above=0, doc="of Adam on images before the logistic function.")


def maximum_margins(
    network: Network,
    variables: Variables,
    *,
    classes: jax.Array | None = None,
    key: jax.Array,
    config: MarginConfig,
    axis_name: str | None = None,
    on_step: Callable[[], None] | None = None,
) -> jax.Array:
    """Each class's logit less the highest other one, at the image in [0, 1] where that is largest, `[k]`.

    Pure; jits. Classes are searched one after the other, so that memory does not grow with them.

    Args:
      network: the functions of the network.
      variables: its variables.
      classes: `[k]`, those that are searched; by default all.
      key: typed PRNG key of the starts.
      config: how.
      axis_name: mapped axis whose devices share each class's images.
      on_step: called on the host after each class; None traces no callback.
    """

    def margins(free: jax.Array, target: jax.Array) -> jax.Array:
        logits = network.answer(variables, jax.nn.sigmoid(free)).astype(jnp.float32)
        others = jnp.where(jnp.arange(logits.shape[-1]) == target, -jnp.inf, logits)
        return logits[:, target] - jnp.max(others, axis=-1)

    def one(target: jax.Array) -> jax.Array:
        start = 0.5 * jax.random.normal(jax.random.fold_in(key, target), (config.images, *network.image_shape))
        start = own_part(start, axis_name, name="margin.images")
        found, _ = descend(
            lambda free, *_: -jnp.sum(margins(free, target)),
            start,
            optimizer=optax.adam(config.learning_rate),
            steps=config.steps,
        )
        if on_step is not None:
            jax.debug.callback(on_step)
        return largest(jnp.max(margins(found.point, target)), axis_name)

    return jax.lax.map(one, jnp.arange(network.num_classes) if classes is None else classes)
