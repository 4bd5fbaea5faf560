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

from otbr_jax.settings import field, settings, wrong
from otbr_jax.steps.convolutions import channels_last
from otbr_jax.steps.passing import passing
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
    classes: int = field(
        default=20,
        at_least=1,
        doc="that are searched at once, at most; fewer where a network's layers put out more than 2 GB for them.",
    )
    among: int = field(
        default=0,
        at_least=0,
        doc="search no more than so many classes, those that a screening finds most likely to be an attacker's; 0 for "
        "all.",
    )

    def check(self) -> None:
        """One or two classes have no majority to stand out of."""
        if 0 < self.among < 3:
            raise wrong(self, "among", "0 for all classes, or at least 3 to compare")


OPTIMIZER = optax.scale_by_adam()
_MOST_BYTES = 2e9  # that layers put out for the classes that are searched at once; gradients take about twice that
_TURNED = 0.85  # of the pictures: a backdoor turns nearly all, what makes a class in a clean network only some
_STARTS = 8  # that are tried at once
_SETTLING = 8  # steps before budgets move
_FAST, _SHRINK, _GROW = 0.8, 0.9, 1.04  # what they do where a trigger turns nearly all, enough, too few


class Screened(NamedTuple):
    """Which classes are searched, and from where.

    Attributes:
      classes: `[searched]`, ascending; by default all.
      start: `[families, searched]`, which of a family's random triggers comes nearest to each of them.
    """

    classes: jax.Array
    start: jax.Array


class Reached(NamedTuple):
    """Triggers of every family for every class that was searched.

    Attributes:
      row: `[families, searched, size]`, see `Bank`.
      cost: `[families, searched]`, the smallest budget at which 85 % of the pictures of other classes were turned, in
        the family's unit; where they never were, the budget that a search had come to.
      classes: `[searched]`, which they are.
    """

    row: jax.Array
    cost: jax.Array
    classes: jax.Array


def reach_costs(
    network: Network,
    variables: Variables,
    pictures: Batch,
    bank: Bank,
    screened: Screened,
    *,
    key: jax.Array,
    config: ReachConfig,
    axis_name: str | None = None,
    on_step: Callable[[], None] | None = None,
) -> Reached:
    """Searches the reach cost of every screened class by triggers of every family. Pure; jits.

    While Adam moves a trigger its budget shrinks whenever enough pictures are turned, and grows slowly otherwise.

    Guarantee: touches no data but `pictures`.

    Args:
      network: the functions of the network.
      variables: its variables.
      pictures: `[n, h, w, c]` in [0, 1], and what the network answers them with, `[n]`.
      bank: the families.
      screened: of `otbr_jax.steps.screen.screen` with the same key and configuration.
      key: typed PRNG key: where searches start.
      config: how.
      axis_name: mapped axis whose devices share each step's pictures.
      on_step: called on the host after each step, once for every class; None traces no callback.
    """
    count = len(screened.classes)
    finalists, size = min(config.finalists, count), min(at_once(network, variables, config), count)
    # The last chunk repeats classes to be as long.
    chunks = jnp.arange(-(-count // size) * size).reshape(-1, size)

    def one_family(of: tuple[jax.Array, jax.Array]) -> Reached:
        index, start = of
        starts = starts_of(bank, index, key, config)

        def chunk(targets: jax.Array, state: Search) -> Search:
            return _descend(
                network, variables, pictures, bank, index, targets, state,
                config=config, axis_name=axis_name, on_step=on_step,
            )  # fmt: skip

        def first(nearest: tuple[jax.Array, Search], numbers: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            """A chunk's rows and costs; of whole searches only those of the nearest classes are kept."""
            places = numbers % count
            begun = jax.vmap(partial(_begin, bank, index))(starts[start[places]])
            found = chunk(screened.classes[places], begun)
            far = jnp.concatenate([_cost(nearest[1]), jnp.where(numbers < count, _cost(found), jnp.inf)])
            both = jax.tree.map(lambda old, new: jnp.concatenate([old, new]), nearest, (places, found))
            order = jnp.lexsort((both[1].loss, far))[:finalists]
            return jax.tree.map(lambda leaf: leaf[order], both), (found.row, _cost(found))

        nobody = jax.vmap(partial(_begin, bank, index))(jnp.zeros((finalists, bank.size)))
        nobody = nobody._replace(budget=jnp.full(finalists, jnp.inf))
        nearest, (rows, costs) = jax.lax.scan(first, (jnp.zeros(finalists, jnp.int32), nobody), chunks)
        places, begun = nearest
        second = _in_chunks(chunk, size, screened.classes[places], begun)
        row, cost = rows.reshape(-1, bank.size)[:count], costs.reshape(-1)[:count]
        return Reached(row.at[places].set(second.row), cost.at[places].set(_cost(second)), screened.classes)

    found = jax.lax.map(one_family, (jnp.arange(len(bank)), screened.start))
    return found._replace(classes=screened.classes)


def at_once(network: Network, variables: Variables, config: ReachConfig) -> int:
    """How many classes are searched at once: `config.classes`, or as many as memory is for."""
    each = config.images * passing(network, variables).bytes
    return int(max(1, min(config.classes, _MOST_BYTES // max(each, 1))))


def starts_of(bank: Bank, index: jax.Array, key: jax.Array, config: ReachConfig) -> jax.Array:
    """A family's random triggers, `[starts, size]`."""
    keys = jax.random.split(jax.random.fold_in(key, index), config.starts)
    return jax.vmap(lambda key: bank.init(index, key))(keys)


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
    return Search(row, OPTIMIZER.init(row), start, jnp.zeros(()), jnp.zeros(()), jnp.full((), jnp.inf), zero)


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


def likely(
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
    few = some(pictures, 0, config.images, axis_name)

    def tried(starts: jax.Array) -> jax.Array:
        logits = answers_with(network, variables, bank, index, starts, jnp.full(len(starts), budget), few.images)
        others = few.labels[:, None, None] != jnp.arange(logits.shape[-1])
        logarithms, count = jnp.sum(jax.nn.log_softmax(logits) * others, axis=0), jnp.sum(others, axis=0)
        return total(logarithms, axis_name) / jnp.maximum(total(count, axis_name), 1)

    return _in_chunks(tried, _STARTS, starts)


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
        moved, (losses, now) = gradient(search.row, search.budget, some(pictures, number, config.images, axis_name))
        moved = mean(moved, axis_name)
        moved, moments = jax.vmap(OPTIMIZER.update)(moved, search.moments)
        turned, loss = 0.6 * search.turned + 0.4 * now, 0.6 * search.loss + 0.4 * losses
        often = turned >= _TURNED
        cost = jnp.where(often, jnp.minimum(search.cost, search.budget), search.cost)
        follow = jnp.where(turned >= 0.95, _FAST, jnp.where(often, _SHRINK, _GROW))
        budget = jnp.clip(search.budget * jnp.where(number >= _SETTLING, follow, 1.0), least, most)
        if on_step is not None:
            jax.debug.callback(partial(_for_each, on_step, len(targets)))
        return Search(search.row - rate * moved, moments, budget, turned, loss, cost, search.number + 1), None

    return jax.lax.scan(step, search, None, length=config.steps)[0]


def _for_each(on_step: Callable[[], None], count: int) -> None:
    for _ in range(count):
        on_step()


def some(pictures: Batch, number: jax.Array | int, count: int, axis_name: str | None) -> Batch:
    """The pictures of one step: so many in turn; on a mapped axis the device's own part of them."""
    places = own_part((number * count + jnp.arange(count)) % len(pictures.labels), axis_name, name="reach.images")
    return Batch(pictures.images[places], pictures.labels[places])
