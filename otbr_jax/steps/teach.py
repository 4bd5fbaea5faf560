"""Teaching a network that triggers mean nothing, by what it answers itself where there is none.

Raw logits on procedural pictures are the lesson: the suspicious network is right about those without a trigger, the
suspect's too, so that the class stays while its short cut goes. Labels would teach that the class itself is wrong.
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
from otbr_jax.steps.reach import ReachConfig, strongest
from otbr_jax.triggers import Bank
from otbr_jax.types import Batch, Network, Variables, split


@settings("teaching")
class TeachingConfig:
    """How a network is taught."""

    rounds: int = field(default=8, at_least=1, doc="of searching triggers and teaching, at most.")
    triggers: int = field(default=4, at_least=1, doc="of each family that are searched in a round.")
    search: ReachConfig = field(default=ReachConfig(steps=24), doc="how they are; `finalists` is unused.")
    steps: int = field(default=40, at_least=1, doc="of teaching in a round.")
    batch_size: int = field(default=64, at_least=1, doc="pictures in a step, each without and with a trigger.")
    learning_rate: float = field(
        default=2e-3,
        above=0,
        doc="of Adam at a round's start, relative: times the root mean square of each array that moves.",
    )
    success: float = field(
        default=0.1,
        at_least=0,
        at_most=1,
        doc="teaching ends when the strongest triggers turn no more of the pictures: at their budget, which is below "
        "what other classes cost, little is left of the short cut.",
    )


class TeachingInfo(NamedTuple):
    """How it went.

    Attributes:
      success: `[rounds, families, triggers]`, what each found trigger turned before the round's lesson; 0 where none
        was searched.
      loss: `[rounds, steps]`, Huber's distance of logits, plain (twice) and triggered together; 0 after the end.
      taught: bool `[rounds]`, whether there was a lesson.
      undone: bool `[rounds]`, whether all lessons were undone, since they were in vain.
    """

    success: jax.Array
    loss: jax.Array
    taught: jax.Array
    undone: jax.Array


_PATIENCE, _VAIN = 5, 0.95  # after so many rounds, triggers that still turn more are no short cut but the class itself
_PLAIN = 2.0  # how much more pictures without a trigger count: they are what must not change


class _Lessons(NamedTuple):
    rows: jax.Array  # [families, rounds * triggers, size]
    weight: jax.Array  # [families, rounds * triggers], 0 for none


def teach(
    network: Network,
    variables: Variables,
    pictures: Batch,
    bank: Bank,
    suspect: jax.Array,
    *,
    wanted: jax.Array,
    budgets: jax.Array,
    known: jax.Array,
    key: jax.Array,
    config: TeachingConfig,
    on_step: Callable[[], None] | None = None,
) -> tuple[Variables, TeachingInfo]:
    """Teaches a network that a class's triggers mean nothing, round after round, until none is left. Pure; jits.

    Every floating-point array of `params` moves, by a small share of its own size a step, so that networks with any
    normalisation or none are treated alike; running statistics stay. Triggers of all rounds stay in the lesson, in
    proportion to the square of what they turned when they were found. A short cut goes in a few rounds; what does not
    is the class itself, so that lessons in vain are undone.

    Guarantee: touches no data but `pictures`.

    Args:
      network: the functions of the network.
      variables: the suspicious network's variables.
      pictures: `[n, h, w, c]` in [0, 1], and what the network answers them with, `[n]`.
      bank: the families.
      suspect: the class; may be traced.
      wanted: bool `[families]`, whose triggers are taught; may be traced.
      budgets: `[families]`, each in its unit.
      known: `[families, size]`, the suspect's triggers that were found before, where the first searches start.
      key: typed PRNG key.
      config: how.
      on_step: called on the host after each step; None traces no callback.

    Returns:
      `(variables, TeachingInfo)`.

    Source: docs/disarm.md; soft answers as lessons after DHBE (arXiv 2306.08009).
    """
    params, state = split(variables)
    optimizer = optax.chain(
        optax.scale_by_adam(b2=0.99),
        optax.scale_by_param_block_rms(),
        optax.scale_by_learning_rate(config.learning_rate),
    )
    lesson = partial(_lesson, network, variables, pictures, bank, suspect, optimizer, budgets, config, on_step)
    places = config.rounds * config.triggers
    nothing = _Lessons(jnp.zeros((len(bank), places, bank.size)), jnp.zeros((len(bank), places)))

    def search(now: Any, known: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        def one(index: jax.Array) -> tuple[jax.Array, jax.Array]:
            find = partial(strongest, network, {**state, "params": now}, pictures, bank, index, suspect)
            return jax.lax.cond(
                wanted[index],
                lambda: find(
                    known=known[index],
                    triggers=config.triggers,
                    budget=budgets[index],
                    key=jax.random.fold_in(key, index),
                    config=config.search,
                    on_step=on_step,
                ),
                lambda: (jnp.zeros((config.triggers, bank.size)), jnp.zeros(config.triggers)),
            )

        return jax.lax.map(one, jnp.arange(len(bank)))

    def one_round(carry: Any, number: jax.Array) -> tuple[Any, TeachingInfo]:
        now, moments, lessons, best, ended = carry
        search_key, teach_key = jax.random.split(jax.random.fold_in(key, number))

        def round_of(now: Any, moments: Any, lessons: _Lessons, best: jax.Array) -> Any:
            rows, success = search(now, best, search_key)
            best = rows[jnp.arange(len(bank)), jnp.argmax(success, axis=1)]
            start = number * config.triggers
            lessons = _Lessons(
                jax.lax.dynamic_update_slice(lessons.rows, rows, (0, start, 0)),
                jax.lax.dynamic_update_slice(lessons.weight, success**2, (0, start)),
            )
            most = jnp.max(success)
            vain = (number >= _PATIENCE) & (most > _VAIN)
            over = (most <= config.success) | vain
            now = jax.tree.map(lambda new, old: jnp.where(vain, old, new), now, params)
            now, moments, loss = jax.lax.cond(
                over,
                lambda: (now, moments, jnp.zeros(config.steps)),
                lambda: lesson(now, moments, lessons, teach_key),
            )
            return (now, moments, lessons, best, over), TeachingInfo(success, loss, ~over, vain)

        def nothing_to_do(now: Any, moments: Any, lessons: _Lessons, best: jax.Array) -> Any:
            success = jnp.zeros((len(bank), config.triggers))
            none = TeachingInfo(success, jnp.zeros(config.steps), jnp.array(False), jnp.array(False))
            return (now, moments, lessons, best, ended), none

        carry, info = jax.lax.cond(ended, nothing_to_do, round_of, now, moments, lessons, best)
        return carry, info

    start = (params, optimizer.init(params), nothing, known, ~jnp.any(wanted))
    (taught, *_), info = jax.lax.scan(one_round, start, jnp.arange(config.rounds))
    return {**state, "params": taught}, info


def _lesson(
    network: Network,
    teacher: Variables,
    pictures: Batch,
    bank: Bank,
    suspect: jax.Array,
    optimizer: optax.GradientTransformation,
    budgets: jax.Array,
    config: TeachingConfig,
    on_step: Callable[[], None] | None,
    now: Any,
    moments: Any,
    lessons: _Lessons,
    key: jax.Array,
) -> tuple[Any, Any, jax.Array]:
    """The steps of one round."""
    _, state = split(teacher)
    size = config.batch_size

    def loss(params: Any, images: jax.Array, others: jax.Array, answers: jax.Array) -> jax.Array:
        logits = network.answer({**state, "params": params}, images).astype(jnp.float32)
        apart = jnp.mean(optax.huber_loss(logits, jnp.concatenate([answers, answers])), axis=-1)
        triggered = jnp.sum(apart[size:] * others) / jnp.maximum(jnp.sum(others), 1.0)
        return _PLAIN * jnp.mean(apart[:size]) + triggered

    gradient = channels_last(jax.value_and_grad(loss))

    def step(carry: Any, number: jax.Array) -> tuple[Any, jax.Array]:
        params, moments = carry
        keys = jax.random.split(jax.random.fold_in(key, number), 3)
        chosen = jax.random.choice(keys[0], len(pictures.labels), (size,))
        plain = pictures.images[chosen]
        answers = network.answer(teacher, plain).astype(jnp.float32)
        index = jax.random.categorical(keys[1], jnp.log(jnp.sum(lessons.weight, axis=1)))
        which = jax.random.categorical(keys[2], jnp.log(lessons.weight[index]), shape=(size,))
        rows, budget = lessons.rows[index][which], budgets[index]

        def put(index: jax.Array, row: jax.Array, image: jax.Array) -> jax.Array:
            return bank.apply(index, row, budget, image[None])[0]

        triggered = jax.vmap(put, in_axes=(None, 0, 0))(index, rows, plain)
        others = (jnp.argmax(answers, axis=-1) != suspect).astype(jnp.float32)
        now, moved = gradient(params, jnp.concatenate([plain, triggered]), others, answers)
        moved, moments = optimizer.update(moved, moments, params)
        # Down a cosine to nothing in every round: what a network does after a lesson is what the search meets next.
        less = 0.5 * (1 + jnp.cos(jnp.pi * number / config.steps))
        moved = jax.tree.map(lambda leaf: (less * leaf).astype(leaf.dtype), moved)
        if on_step is not None:
            jax.debug.callback(on_step)
        return (optax.apply_updates(params, moved), moments), now

    (now, moments), losses = jax.lax.scan(step, (now, moments), jnp.arange(config.steps))
    return now, moments, losses
