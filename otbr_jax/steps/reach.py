"""Reach costs: the smallest budget at which a trigger of a family turns pictures into a class.

A backdoor is a short cut to the attacker's class, so that some family reaches it at a fraction of what other classes
cost. One compiled program searches for every class at once, family after family.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from otbr_jax.settings import field, settings
from otbr_jax.steps.convolutions import channels_last
from otbr_jax.steps.sharing import mean, own_part, total
from otbr_jax.triggers import Bank
from otbr_jax.types import Batch, Network, Variables


@settings("reach")
class ReachConfig:
    """How triggers are searched within budgets."""

    steps: int = field(default=24, at_least=1, doc="of Adam, for every class and family.")
    finalists: int = field(
        default=5, at_least=1, doc="classes, those nearest to being reached, that are searched for as many steps more."
    )
    images: int = field(default=16, at_least=1, doc="pictures in a step.")
    starts: int = field(default=128, at_least=1, doc="random triggers of which each class's best is where Adam starts.")
    classes: int = field(default=20, at_least=1, doc="that are searched at once; memory grows with it.")


_OPTIMIZER = optax.scale_by_adam()
_TURNED = 0.85  # of the pictures: a backdoor turns nearly all, what makes a class in a clean network only some
_STARTS = 8  # that are tried at once
_SETTLING = 8  # steps before budgets move
_FAST, _SHRINK, _GROW = 0.8, 0.9, 1.04  # what they do where a trigger turns nearly all, enough, too few


class Reached(NamedTuple):
    """Triggers of every family for every class.

    Attributes:
      row: `[families, classes, size]`, see `Bank`.
      cost: `[families, classes]`, the smallest budget at which 85 % of the pictures of other classes were turned, in
        the family's unit; where they never were, the budget that a search had come to.
    """

    row: jax.Array
    cost: jax.Array


def reach_costs(
    network: Network,
    variables: Variables,
    pictures: Batch,
    bank: Bank,
    *,
    key: jax.Array,
    config: ReachConfig,
    axis_name: str | None = None,
    on_step: Callable[[], None] | None = None,
) -> Reached:
    """Searches the reach cost of every class by triggers of every family. Pure; jits.

    While Adam moves a trigger its budget shrinks whenever enough pictures are turned, and grows slowly otherwise.

    Guarantee: touches no data but `pictures`.

    Args:
      network: the functions of the network.
      variables: its variables.
      pictures: `[n, h, w, c]` in [0, 1], and what the network answers them with, `[n]`.
      bank: the families.
      key: typed PRNG key: where searches start.
      config: how.
      axis_name: mapped axis whose devices share each step's pictures.
      on_step: called on the host after each step; None traces no callback.
    """
    classes = jnp.arange(network.num_classes)
    finalists = min(config.finalists, network.num_classes)

    def one_family(index: jax.Array) -> Reached:
        own = jax.random.fold_in(key, index)
        starts = jax.vmap(lambda key: bank.init(index, key))(jax.random.split(own, config.starts))
        budget = bank.numbers("start")[index]
        likely = _likely(network, variables, pictures, bank, index, starts, budget, config, axis_name)
        best = starts[jnp.argmax(likely, axis=0)]

        def chunk(targets: jax.Array, state: Search) -> Search:
            return _descend(
                network, variables, pictures, bank, index, targets, state,
                config=config, axis_name=axis_name, on_step=on_step,
            )  # fmt: skip

        first = _in_chunks(chunk, config.classes, classes, jax.vmap(partial(_begin, bank, index))(best))
        nearest = jnp.lexsort((first.loss, _cost(first)))[:finalists]
        second = _in_chunks(chunk, config.classes, classes[nearest], jax.tree.map(lambda leaf: leaf[nearest], first))
        found = jax.tree.map(lambda whole, part: whole.at[nearest].set(part), first, second)
        return Reached(found.row, _cost(found))

    return jax.lax.map(one_family, jnp.arange(len(bank)))


class Search(NamedTuple):
    """Where a search stands.

    Its trigger, Adam's moments, the budget, what it turned and its loss of late, the smallest budget that sufficed, and
    how many steps were taken.
    """

    row: jax.Array
    moments: Any
    budget: jax.Array
    turned: jax.Array
    loss: jax.Array
    cost: jax.Array
    number: jax.Array


def _begin(bank: Bank, index: jax.Array, row: jax.Array) -> Search:
    start, zero = bank.numbers("start")[index], jnp.zeros((), jnp.int32)
    return Search(row, _OPTIMIZER.init(row), start, jnp.zeros(()), jnp.zeros(()), jnp.full((), jnp.inf), zero)


def _cost(search: Search) -> jax.Array:
    return jnp.minimum(search.cost, search.budget)


def _in_chunks(function: Callable[..., Any], size: int, *trees: Any) -> Any:
    """`function` of rows of pytrees, so many at once; the last chunk repeats rows to be as long."""
    count = len(jax.tree.leaves(trees)[0])
    size = min(size, count)
    chunks = -(-count // size)
    places = jnp.arange(chunks * size) % count
    split = jax.tree.map(lambda leaf: leaf[places].reshape(chunks, size, *leaf.shape[1:]), trees)
    found = jax.lax.map(lambda each: function(*each), split)
    return jax.tree.map(lambda leaf: leaf.reshape(chunks * size, *leaf.shape[2:])[:count], found)


def _likely(
    network: Network,
    variables: Variables,
    pictures: Batch,
    bank: Bank,
    index: jax.Array,
    starts: jax.Array,
    budget: jax.Array,
    config: ReachConfig,
    axis_name: str | None,
) -> jax.Array:
    """How likely each start makes each class on pictures of others, `[starts, classes]`, a mean logarithm.

    One pass of the network serves all classes.
    """
    few = _some(pictures, 0, config.images, axis_name)

    def some(starts: jax.Array) -> jax.Array:
        logits = answers_with(network, variables, bank, index, starts, jnp.full(len(starts), budget), few.images)
        others = few.labels[:, None, None] != jnp.arange(logits.shape[-1])
        likely, count = jnp.sum(jax.nn.log_softmax(logits) * others, axis=0), jnp.sum(others, axis=0)
        return total(likely, axis_name) / jnp.maximum(total(count, axis_name), 1)

    return _in_chunks(some, _STARTS, starts)


def answers_with(
    network: Network,
    variables: Variables,
    bank: Bank,
    index: jax.Array,
    rows: jax.Array,
    budgets: jax.Array,
    images: jax.Array,
) -> jax.Array:
    """Logits `[n, triggers, classes]`, float32, of images `[n, h, w, c]` with each of some triggers of a family.

    The network sees them as one batch, image by image: devices that share the images share the batch likewise.
    """
    put = jax.vmap(lambda row, budget: bank.apply(index, row, budget, images), out_axes=1)
    triggered = put(rows, budgets)
    logits = network.answer(variables, triggered.reshape(-1, *images.shape[1:])).astype(jnp.float32)
    return logits.reshape(*triggered.shape[:2], -1)


def turning(
    network: Network,
    variables: Variables,
    batch: Batch,
    bank: Bank,
    index: jax.Array,
    rows: jax.Array,
    budgets: jax.Array,
    targets: jax.Array,
    *,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of each trigger's target on pictures of other classes, and the share that is turned, `[triggers]`.

    On a mapped axis `batch` is the device's own part.
    """
    logits = answers_with(network, variables, bank, index, rows, budgets, batch.images)
    goals = jnp.broadcast_to(targets, logits.shape[:2])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, goals)
    others = (batch.labels[:, None] != targets).astype(jnp.float32)
    turned = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
    sums = (jnp.sum(losses * others, axis=0), jnp.sum(turned * others, axis=0), jnp.sum(others, axis=0))
    loss, share, count = total(sums, axis_name)
    return loss / jnp.maximum(count, 1.0), share / jnp.maximum(count, 1.0)


def _descend(
    network: Network,
    variables: Variables,
    pictures: Batch,
    bank: Bank,
    index: jax.Array,
    targets: jax.Array,
    search: Search,
    *,
    config: ReachConfig,
    axis_name: str | None,
    on_step: Callable[[], None] | None,
) -> Search:
    """Adam on the triggers of some classes, with budgets that follow success; searches `[targets]`."""
    least, most = (bank.numbers("bounds", place)[index] for place in (0, 1))
    rate = bank.numbers("learning_rate")[index]

    def objective(rows: jax.Array, budgets: jax.Array, batch: Batch) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        losses, turned = turning(network, variables, batch, bank, index, rows, budgets, targets, axis_name=axis_name)
        return jnp.sum(losses), (losses, turned)

    gradient = channels_last(jax.grad(objective, has_aux=True))

    def step(search: Search, _: None) -> tuple[Search, None]:
        number = search.number[0]
        moved, (losses, now) = gradient(search.row, search.budget, _some(pictures, number, config.images, axis_name))
        moved = mean(moved, axis_name)
        moved, moments = jax.vmap(_OPTIMIZER.update)(moved, search.moments)
        turned, loss = 0.6 * search.turned + 0.4 * now, 0.6 * search.loss + 0.4 * losses
        often = turned >= _TURNED
        cost = jnp.where(often, jnp.minimum(search.cost, search.budget), search.cost)
        follow = jnp.where(turned >= 0.95, _FAST, jnp.where(often, _SHRINK, _GROW))
        budget = jnp.clip(search.budget * jnp.where(number >= _SETTLING, follow, 1.0), least, most)
        if on_step is not None:
            jax.debug.callback(on_step)
        return Search(search.row - rate * moved, moments, budget, turned, loss, cost, search.number + 1), None

    return jax.lax.scan(step, search, None, length=config.steps)[0]


def _some(pictures: Batch, number: jax.Array | int, count: int, axis_name: str | None) -> Batch:
    """The pictures of one step: so many in turn; on a mapped axis the device's own part of them."""
    places = own_part((number * count + jnp.arange(count)) % len(pictures.labels), axis_name, name="reach.images")
    return Batch(pictures.images[places], pictures.labels[places])


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
    likely = _likely(network, variables, pictures, bank, index, starts, budget, config, axis_name)
    # Half from the nearest starts, half from any: what is nearest at first is not always the way in.
    nearest = jax.lax.top_k(likely[:, target], triggers)[1]
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
        moved, turned = gradient(rows, _some(pictures, number, config.images, axis_name))
        moved, moments = _OPTIMIZER.update(mean(moved, axis_name), moments)
        if on_step is not None:
            jax.debug.callback(on_step)
        return (rows - rate * moved, moments), turned

    (rows, _), turned = jax.lax.scan(step, (rows, _OPTIMIZER.init(rows)), jnp.arange(config.steps))
    return rows, jnp.mean(turned[-8:], axis=0)
