"""The strongest triggers of a family within a budget: what lessons are given against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from otbr_jax.steps.convolutions import channels_last
from otbr_jax.steps.reach import OPTIMIZER, ReachConfig, likely, some, turning
from otbr_jax.steps.sharing import mean
from otbr_jax.triggers import Bank
from otbr_jax.types import Batch, Network, Variables


def strongest(
    network: Network,
    variables: Variables,
    pictures: Batch,
    bank: Bank,
    index: jax.Array,
    target: jax.Array,
    *,
    known: jax.Array,
    triggers: int,
    budget: jax.Array,
    key: jax.Array,
    config: ReachConfig,
    axis_name: str | None = None,
    on_step: Callable[[], None] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The strongest triggers of a family within a budget that turn pictures into a class. Pure; jits.

    Args:
      network: the functions of the network.
      variables: its variables.
      pictures: `[n, h, w, c]` in [0, 1], and what the network answers them with, `[n]`.
      bank: the families.
      index: of the family; may be traced.
      target: the class; may be traced.
      known: `[size]`, a trigger that was found before; the first search starts there.
      triggers: how many; each is searched from another start, every other one of those that come nearest to the class.
      budget: in the family's unit.
      key: typed PRNG key of the starts.
      config: how.
      axis_name: mapped axis whose devices share each step's pictures.
      on_step: called on the host after each step; None traces no callback.

    Returns:
      The triggers `[triggers, size]`, and the share of pictures of other classes that each turns, `[triggers]`, over
      the last eight steps.
    """
    starts = jax.vmap(lambda key: bank.init(index, key))(jax.random.split(key, max(config.starts, triggers)))
    near = likely(network, variables, pictures, bank, index, starts, budget, config, axis_name)
    # Half from the nearest starts, half from any: what is nearest at first is not always the way in.
    nearest = jax.lax.top_k(near[:, target], triggers)[1]
    rows = starts[jnp.where(jnp.arange(triggers) % 2 == 0, nearest, jnp.arange(triggers))]
    rows = rows.at[0].set(known)
    rate = bank.numbers("learning_rate")[index]

    def objective(rows: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        same = jnp.full(triggers, budget), jnp.full(triggers, target)
        losses, turned = turning(network, variables, batch, bank, index, rows, *same, axis_name=axis_name)
        return jnp.sum(losses), turned

    gradient = channels_last(jax.grad(objective, has_aux=True))

    def step(carry: Any, number: jax.Array) -> tuple[Any, jax.Array]:
        rows, moments = carry
        moved, turned = gradient(rows, some(pictures, number, config.images, axis_name))
        moved, moments = OPTIMIZER.update(mean(moved, axis_name), moments)
        if on_step is not None:
            jax.debug.callback(on_step)
        return (rows - rate * moved, moments), turned

    (rows, _), turned = jax.lax.scan(step, (rows, OPTIMIZER.init(rows)), jnp.arange(config.steps))
    return rows, jnp.mean(turned[-8:], axis=0)
