"""Maximum margins: the largest difference between a class's logit and the highest other one, over all images.

The target class of a backdoor has a far larger maximum margin than other classes, whatever the trigger looks like
(MM-BD: Wang, Xiang, Miller, Kesidis, S&P 2024, arXiv 2205.06900).
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
    """How maximum margins are estimated."""

    steps: int = field(default=60, at_least=1, doc="of Adam.")
    images: int = field(default=8, at_least=1, doc="per class, each from its own random start.")
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
    """The maximum margin of each class over images in [0, 1]: its logit minus the highest other one, `[k]`.

    Pure; jits. One class is optimised after the other, so that memory does not grow with them.

    Args:
      network: the functions of the network.
      variables: its variables.
      classes: `[k]`; by default all.
      key: typed PRNG key of the starts.
      config: the settings.
      axis_name: mapped axis whose devices share each class's images.
      on_step: called on the host after each class; None traces no callback.
    """

    def margins_of(free: jax.Array, target: jax.Array) -> jax.Array:
        logits = network.answer(variables, jax.nn.sigmoid(free)).astype(jnp.float32)
        others = jnp.where(jnp.arange(logits.shape[-1]) == target, -jnp.inf, logits)
        return logits[:, target] - jnp.max(others, axis=-1)

    def one(target: jax.Array) -> jax.Array:
        start = 0.5 * jax.random.normal(jax.random.fold_in(key, target), (config.images, *network.image_shape))
        start = own_part(start, axis_name, name="margin.images")
        descent, _ = descend(
            lambda free, *_: -jnp.sum(margins_of(free, target)),
            start,
            optimizer=optax.adam(config.learning_rate),
            steps=config.steps,
        )
        if on_step is not None:
            jax.debug.callback(on_step)
        return largest(jnp.max(margins_of(descent.point, target)), axis_name)

    return jax.lax.map(one, jnp.arange(network.num_classes) if classes is None else classes)
