"""Teaching a network that triggers mean nothing, by what it answers itself where there is none.

Raw logits on procedural pictures are the lesson: the suspicious network is right about those without a trigger, so that
the class stays while its short cut goes. Labels would teach that the class itself is wrong. Images that the class is
the answer to teach nothing: they may be answered so because of the backdoor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from otbr_jax.inversion import InversionConfig, Within, invert_triggers, success_rate
from otbr_jax.inversion.minimal import IMAGES
from otbr_jax.numerics.collectives import mean, own_part, total
from otbr_jax.numerics.convolutions import channels_last
from otbr_jax.settings import field, settings
from otbr_jax.triggers import FamilySwitch
from otbr_jax.types import Batch, Network, Variables, split


@settings("unlearning")
class TriggerUnlearningConfig:
    """How a network is taught."""

    rounds: int = field(default=6, at_least=1, doc="of searching triggers and teaching, at most.")
    triggers: int = field(default=4, at_least=1, doc="of each short cut that are searched in a round.")
    search: InversionConfig = field(default=InversionConfig(), doc="how they are; `finalists` is unused.")
    steps: int = field(default=24, at_least=1, doc="of teaching in a round.")
    batch_size: int = field(default=64, at_least=1, doc="pictures in a step, each without and with a trigger.")
    learning_rate: float = field(
        default=2e-3,
        above=0,
        doc="of Adam at a round's start, relative: times the root mean square of each array that moves.",
    )
    emphasis: float = field(
        default=2.0,
        at_least=1,
        doc="a short cut that is still open after a round weighs so many times more in the next.",
    )
    distortion: float = field(
        default=0.2,
        above=0,
        doc="lessons end once logits of pictures without a trigger have moved by more, in their standard deviations.",
    )


class TriggersToUnlearn(NamedTuple):
    """Ways to a class that are to be closed, `[k]` each.

    Attributes:
      family: the index of each one's family in the switch.
      target: the class that it leads to.
      cost: its reach cost.
      budget: of the triggers that are taught, in the family's unit.
      known: `[k, length]`, flat latents:, a trigger that was found before, where the first search starts.
      wanted: bool, whether it is to be closed at all.
    """

    family: jax.Array
    target: jax.Array
    cost: jax.Array
    budget: jax.Array
    known: jax.Array
    wanted: jax.Array


class TriggerUnlearningInfo(NamedTuple):
    """How it went.

    Attributes:
      success: `[rounds, k, triggers]`, what each trigger turned that was found before a round's lesson; 0 where none
        was searched.
      left: `[rounds, k]`, what the best trigger of the first round still turned after the lesson, at no more than
        twice what the class used to cost; 0 where none of them had turned half of the pictures when it was found.
      distortion: `[rounds]`, how far logits of pictures without a trigger had moved after the lesson, in their standard
        deviations.
      loss: `[rounds, steps]`, the distance of logits, plain (twice) and triggered together; 0 after the end.
      done: bool `[rounds]`, whether there was an unlearning round.
      reverted: bool, whether all lessons were undone, since they were in vain.
    """

    success: jax.Array
    left: jax.Array
    distortion: jax.Array
    loss: jax.Array
    done: jax.Array
    reverted: jax.Array


_PLAIN = 2.0  # how much more pictures without a trigger count: they are what must not change
_NEARLY = 0.05  # logits this near count by the square: an absolute distance alone would pull back at full strength
_OPEN = 0.5  # of the pictures: a short cut by which more are turned is still open
_MOST = 8.0  # how much more than another one a short cut can weigh
_CHECK = 2.0  # times what the class used to cost: a short cut that takes more is none
_CHECKED = 100  # pictures that this is measured on
_SIZE = "unlearning.batch_size"
_GONE = 0.1  # of the pictures: where first triggers turn no more, those that are found anew are the class itself
_VAIN = 0.5  # what lessons leave of a class that is itself what triggers reach, and no short cut


class _Progress(NamedTuple):
    """Where the lessons stand."""

    params: Any
    moments: Any
    latents: jax.Array  # [k, rounds * triggers, length], flat
    success: jax.Array  # [k, rounds * triggers], what they turned when they were found; 0 for none
    known: jax.Array  # [k, length]
    emphasis: jax.Array  # [k]
    left: jax.Array  # [k]
    open: jax.Array  # bool [k]


def unlearn_triggers(
    network: Network,
    variables: Variables,
    batch: Batch,
    switch: FamilySwitch,
    to_unlearn: TriggersToUnlearn,
    *,
    key: jax.Array,
    config: TriggerUnlearningConfig,
    axis_name: str | None = None,
    on_step: Callable[[], None] | None = None,
) -> tuple[Variables, TriggerUnlearningInfo]:
    """Teaches a network that triggers mean nothing, round after round, until short cuts are closed. Pure; jits.

    Every floating-point array of `params` moves, by a small share of its own size a step, so that networks with any
    normalisation or none are treated alike; running statistics stay. Triggers of all rounds stay in the lesson. A short
    cut is closed when triggers found in the network as it came turn no more pictures than its family's `left`.
    Where all are of families with `beyond`, the network goes so much further along the way that the lessons took it.
    A backdoor goes in a few rounds, and little else moves; what does not is the class itself, so that lessons in vain
    are undone.

    Guarantee: touches no data but `batch`.

    Args:
      network: the functions of the network.
      variables: the suspicious network's variables.
      batch: `[n, h, w, c]` in [0, 1], and what the network answers them with, `[n]`.
      switch: the families.
      to_unlearn: what to close; may be traced.
      key: typed PRNG key.
      config: how.
      axis_name: mapped axis whose devices share each step's pictures.
      on_step: called on the host after each step; None traces no callback.

    Returns:
      `(variables, TriggerUnlearningInfo)`.

    Source: docs/defences/disarm.md; soft answers as lessons after DHBE (arXiv 2306.08009).
    """
    params, state = split(variables)
    count, places = len(to_unlearn.family), config.rounds * config.triggers
    optimizer = optax.chain(
        optax.scale_by_adam(b2=0.99),
        optax.scale_by_param_block_rms(),
        optax.scale_by_learning_rate(config.learning_rate),
    )
    one_lesson = partial(_round, network, variables, batch, switch, to_unlearn, optimizer, config, axis_name, on_step)
    check = jnp.minimum(_CHECK * to_unlearn.cost, to_unlearn.budget)
    enough = switch.numbers("left")[to_unlearn.family]
    few = Batch(batch.images[-_CHECKED:], batch.labels[-_CHECKED:])
    meant = network.answer(variables, few.images).astype(jnp.float32)
    aimed_at = jnp.any((few.labels[:, None] == to_unlearn.target) & to_unlearn.wanted, axis=1)
    plain = jnp.where(jnp.all(aimed_at), True, ~aimed_at)[:, None]

    def search(progress: _Progress, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        def one(index: jax.Array) -> tuple[jax.Array, jax.Array]:
            def found() -> tuple[jax.Array, jax.Array]:
                strongest, _ = invert_triggers(
                    network,
                    {**state, "params": progress.params},
                    batch,
                    switch[to_unlearn.family[index]],
                    to_unlearn.target[index],
                    aim=Within(to_unlearn.budget[index]),
                    steps=config.search.steps,
                    triggers=config.triggers,
                    starts=config.search.starts,
                    key=jax.random.fold_in(key, index),
                    known=progress.known[index],
                    batch_size=config.search.images,
                    axis_name=axis_name,
                    name=IMAGES,
                    on_step=on_step,
                )
                return strongest.parameters, strongest.success

            none = (jnp.zeros((config.triggers, switch.length)), jnp.zeros(config.triggers))
            return jax.lax.cond(progress.open[index], found, lambda: none)

        return jax.lax.map(one, jnp.arange(count))

    def still_turned(progress: _Progress) -> jax.Array:
        """What the best trigger of the first round turns now, `[k]`."""
        now = {**state, "params": progress.params}

        def one(place: jax.Array) -> jax.Array:
            index, trigger = place // config.triggers, place % config.triggers
            family, target = to_unlearn.family[index], to_unlearn.target[index]
            best = switch[family].trigger(progress.latents[index, trigger][None], check[index][None])
            share = success_rate(network, now, few, best, target[None])[0]
            return jnp.where(progress.success[index, trigger] > _OPEN, share, 0.0)

        shares = jax.lax.map(one, jnp.arange(count * config.triggers))
        return jnp.max(shares.reshape(count, config.triggers), axis=1)

    def distortion(progress: _Progress) -> jax.Array:
        now = network.answer({**state, "params": progress.params}, few.images).astype(jnp.float32)
        moved = jnp.mean(jnp.abs(now - meant), where=plain)
        return moved / jnp.maximum(jnp.std(meant, where=plain), 1e-6)

    def one_round(progress: _Progress, number: jax.Array) -> tuple[_Progress, TriggerUnlearningInfo]:
        search_key, teach_key = jax.random.split(jax.random.fold_in(key, number))

        def unlearned() -> tuple[_Progress, TriggerUnlearningInfo]:
            latents, success = search(progress, search_key)
            most = jnp.max(success, axis=1)
            best = latents[jnp.arange(count), jnp.argmax(success, axis=1)]
            start = number * config.triggers
            now = progress._replace(
                latents=jax.lax.dynamic_update_slice(progress.latents, latents, (0, start, 0)),
                success=jax.lax.dynamic_update_slice(progress.success, success, (0, start)),
                known=jnp.where(progress.open[:, None], best, progress.known),
                # A search that finds nothing within the budget has nothing to teach either.
                open=progress.open & (most > 0) & ~((progress.left <= _GONE) & (most > _OPEN)),
            )
            wanted = jnp.any(now.open)
            now, loss = jax.lax.cond(wanted, lambda: one_lesson(now, teach_key), lambda: (now, jnp.zeros(config.steps)))
            left = jnp.where(to_unlearn.wanted, still_turned(now), 0.0)
            heavier = jnp.where(left > _OPEN, jnp.minimum(config.emphasis * now.emphasis, _MOST), now.emphasis)
            moved = distortion(now)
            done = TriggerUnlearningInfo(success, left, moved, loss, wanted, jnp.array(False))
            still_open = wanted & (left > enough) & (moved <= config.distortion)
            return now._replace(emphasis=heavier, left=left, open=still_open), done

        def nothing() -> tuple[_Progress, TriggerUnlearningInfo]:
            none, no = jnp.zeros((count, config.triggers)), jnp.array(False)
            return progress, TriggerUnlearningInfo(
                none, jnp.zeros(count), jnp.zeros(()), jnp.zeros(config.steps), no, no
            )

        return jax.lax.cond(jnp.any(progress.open), unlearned, nothing)

    start = _Progress(
        params,
        optimizer.init(params),
        jnp.zeros((count, places, switch.length)),
        jnp.zeros((count, places)),
        to_unlearn.known,
        jnp.ones(count),
        jnp.where(to_unlearn.wanted, 1.0, 0.0),
        to_unlearn.wanted,
    )
    progress, info = jax.lax.scan(one_round, start, jnp.arange(config.rounds))
    reverted = jnp.max(progress.left) > _VAIN
    beyond = jnp.min(jnp.where(to_unlearn.wanted, switch.numbers("beyond")[to_unlearn.family], jnp.inf))
    far = jnp.where(reverted | ~info.done[0], 0.0, beyond)
    params = jax.tree.map(
        lambda new, old: jnp.where(far > 0, old + far * (new - old), old).astype(old.dtype), progress.params, params
    )
    return {**state, "params": params}, info._replace(reverted=reverted)


def unlearn_nothing(
    variables: Variables, to_unlearn: TriggersToUnlearn, *, config: TriggerUnlearningConfig
) -> tuple[Variables, TriggerUnlearningInfo]:
    """What `teach` gives where nothing is to be closed, without the lessons that it would compile."""
    count, (rounds, triggers, steps) = len(to_unlearn.family), (config.rounds, config.triggers, config.steps)
    nothing = jnp.zeros((rounds, count, triggers)), jnp.zeros((rounds, count)), jnp.zeros(rounds)
    return variables, TriggerUnlearningInfo(
        *nothing, jnp.zeros((rounds, steps)), jnp.zeros(rounds, bool), jnp.zeros((), bool)
    )


def _round(
    network: Network,
    teacher: Variables,
    batch: Batch,
    switch: FamilySwitch,
    to_unlearn: TriggersToUnlearn,
    optimizer: optax.GradientTransformation,
    config: TriggerUnlearningConfig,
    axis_name: str | None,
    on_step: Callable[[], None] | None,
    progress: _Progress,
    key: jax.Array,
) -> tuple[_Progress, jax.Array]:
    """The steps of one round."""
    _, state = split(teacher)
    size = config.batch_size
    # In proportion to the square of what they turned when they were found; a step teaches triggers of one short cut.
    weights = jnp.where(progress.open[:, None], progress.success**2, 0.0)
    often = jnp.log(jnp.sum(weights, axis=1) * progress.emphasis)

    def loss(params: Any, images: jax.Array, others: jax.Array, answers: jax.Array, emphasis: jax.Array) -> jax.Array:
        logits = network.answer({**state, "params": params}, images).astype(jnp.float32)
        apart = optax.huber_loss(logits.reshape(-1, 2, logits.shape[-1]), answers[:, None], delta=_NEARLY) / _NEARLY
        sums = total((others @ jnp.mean(apart, axis=-1), jnp.sum(others)), axis_name)
        plain, triggered = sums[0] / jnp.maximum(sums[1], 1.0)
        return _PLAIN * plain + emphasis * triggered

    gradient = channels_last(jax.value_and_grad(loss))

    def step(carry: Any, number: jax.Array) -> tuple[Any, jax.Array]:
        params, moments = carry
        keys = jax.random.split(jax.random.fold_in(key, number), 3)
        chosen = own_part(jax.random.choice(keys[0], len(batch.labels), (size,)), axis_name, name=_SIZE)
        plain = batch.images[chosen]
        answers = network.answer(teacher, plain).astype(jnp.float32)
        index = jax.random.categorical(keys[1], often)
        which = jax.random.categorical(keys[2], jnp.log(weights[index]), shape=(size,))
        which = own_part(which, axis_name, name=_SIZE)
        latents, family, budget = progress.latents[index][which], to_unlearn.family[index], to_unlearn.budget[index]

        def put(family: jax.Array, latent: jax.Array, image: jax.Array) -> jax.Array:
            return switch[family].apply(image[None], latent, budget)[0]

        triggered = jax.vmap(put, in_axes=(None, 0, 0))(family, latents, plain)
        others = (jnp.argmax(answers, axis=-1) != to_unlearn.target[index]).astype(jnp.float32)
        # In turn, so that devices which share the pictures share the batch likewise.
        images, emphasis = jnp.stack([plain, triggered], axis=1), progress.emphasis[index]
        images = images.reshape(-1, *plain.shape[1:])
        now, moved = gradient(params, images, others, answers, emphasis)
        moved = mean(moved, axis_name)
        moved, moments = optimizer.update(moved, moments, params)
        # Down a cosine to nothing in every round: what a network does after a lesson is what the search meets next.
        less = 0.5 * (1 + jnp.cos(jnp.pi * number / config.steps))
        moved = jax.tree.map(lambda leaf: (less * leaf).astype(leaf.dtype), moved)
        if on_step is not None:
            jax.debug.callback(on_step)
        return (optax.apply_updates(params, moved), moments), now

    (params, moments), losses = jax.lax.scan(step, (progress.params, progress.moments), jnp.arange(config.steps))
    return progress._replace(params=params, moments=moments), losses
