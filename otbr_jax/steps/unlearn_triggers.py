"""Trigger unlearning: a network forgets inverted triggers, distilled from its own logits on images without them.

The teacher is the suspicious network, the images are procedural. It is right about images without a trigger, so a class
survives while its trigger stops working. Hard labels would unlearn the class itself. Images that are predicted as the
target are left out: a backdoor may be why.
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
    """How inverted triggers are unlearned."""

    rounds: int = field(default=6, at_least=1, doc="of trigger inversion and unlearning, at most.")
    triggers: int = field(default=4, at_least=1, doc="that are inverted in a round, for each family and class.")
    inversion: InversionConfig = field(
        default=InversionConfig(), doc="how triggers are inverted; `finalists` is unused.", formerly="search"
    )
    steps: int = field(default=24, at_least=1, doc="of unlearning in a round.")
    batch_size: int = field(default=64, at_least=1, doc="images in a step, each without and with a trigger.")
    learning_rate: float = field(
        default=2e-3,
        above=0,
        doc="of Adam when a round starts, relative to the root mean square of each array of parameters.",
    )
    emphasis: float = field(
        default=2.0,
        at_least=1,
        doc="factor on the weight of a family's triggers in the next round if they still work after this one.",
    )
    distortion: float = field(
        default=0.2,
        above=0,
        doc="unlearning ends once logits of images without a trigger change by more, in standard deviations.",
    )


class TriggersToUnlearn(NamedTuple):
    """Which triggers are unlearned: `k` pairs of a family and a class, arrays `[k]`.

    Attributes:
      family: the index of each family in the switch.
      target: the class that its triggers lead to.
      size: the size of its minimal trigger.
      budget: of the triggers that are unlearned, in the family's unit.
      start: `[k, length]`, flat latents, where the first inversion starts: the minimal triggers.
      wanted: bool, whether its triggers are unlearned at all.
    """

    family: jax.Array
    target: jax.Array
    size: jax.Array
    budget: jax.Array
    start: jax.Array
    wanted: jax.Array


class TriggerUnlearningInfo(NamedTuple):
    """How the unlearning went.

    Attributes:
      success: `[rounds, k, triggers]`, success rate of each inverted trigger before the round's unlearning; 0 where
        none was inverted.
      left: `[rounds, k]`, success rate of the best trigger of the first round after the round's unlearning, at no more
        than twice the size of the minimal trigger; 0 where none of them had a success rate above a half when inverted.
      distortion: `[rounds]`, mean change of the logits of images without a trigger after the round, in their standard
        deviations.
      loss: `[rounds, steps]`, distance of the logits on images without (counted twice) and with triggers; 0 after the
        end.
      done: bool `[rounds]`, whether there was an unlearning round.
      reverted: bool, whether all rounds were reverted because the triggers still worked.
    """

    success: jax.Array
    left: jax.Array
    distortion: jax.Array
    loss: jax.Array
    done: jax.Array
    reverted: jax.Array


_PLAIN = 2.0  # weight of images without a trigger: their logits must not change
_HUBER = 0.05  # below this distance of logits the loss is quadratic: an absolute distance would never settle
_WORKS = 0.5  # success rate above which a trigger still works
_MAX_EMPHASIS = 8.0  # the largest weight of one family's triggers relative to another's
_CHECK = 2.0  # times the size of the minimal trigger: larger triggers say nothing about a backdoor
_CHECKED = 100  # images on which success rates and distortion are measured
_SIZE = "unlearning.batch_size"
_GONE = 0.1  # success rate at which the first triggers are gone: new ones that work then show the class itself
_IN_VAIN = 0.5  # success rate above which all is reverted: the triggers show the class itself and no backdoor


class _Progress(NamedTuple):
    """Where the unlearning stands."""

    params: Any
    opt_state: Any
    latents: jax.Array  # [k, rounds * triggers, length], flat
    success: jax.Array  # [k, rounds * triggers], success rates when they were inverted; 0 for none
    start: jax.Array  # [k, length]
    emphasis: jax.Array  # [k]
    left: jax.Array  # [k]
    open: jax.Array  # bool [k], whether its triggers still have to be unlearned


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
    """Unlearns triggers, round after round, until those of the first round no longer work. Pure; jits.

    A round inverts triggers of each open family and class, then fine-tunes on all triggers so far. The loss compares
    the logits on images with and without a trigger with those of the suspicious network on the images without one.

    Updates are scaled by the size of each array of `params`, so that networks with any normalisation, or none, are
    treated alike; running statistics stay. A family is done when the success rate of the first triggers is at most its
    `stop_success`. Where all families have `extrapolation`, the weight change is scaled by it.
    Unlearning removes a backdoor in a few rounds, and changes little else. If the first triggers still work at the end,
    they show the class itself, and all rounds are reverted.

    Guarantee: touches no data but `batch`.

    Args:
      network: the functions of the network.
      variables: the suspicious network's variables.
      batch: images `[n, h, w, c]` in [0, 1] and the network's predictions for them, `[n]`.
      switch: the families.
      to_unlearn: which triggers; may be traced.
      key: typed PRNG key.
      config: the settings.
      axis_name: mapped axis whose devices share each step's images.
      on_step: called on the host after each step; None traces no callback.

    Returns:
      `(variables, TriggerUnlearningInfo)`.

    Source: docs/defences/disarm.md; distillation of a network from its own logits after DHBE (arXiv 2306.08009).
    """
    params, state = split(variables)
    count, places = len(to_unlearn.family), config.rounds * config.triggers
    optimizer = optax.chain(
        optax.scale_by_adam(b2=0.99),
        optax.scale_by_param_block_rms(),
        optax.scale_by_learning_rate(config.learning_rate),
    )
    distil = partial(
        _unlearn_round, network, variables, batch, switch, to_unlearn, optimizer, config, axis_name, on_step
    )
    check = jnp.minimum(_CHECK * to_unlearn.size, to_unlearn.budget)
    stop_success = switch.numbers("stop_success")[to_unlearn.family]
    few = Batch(batch.images[-_CHECKED:], batch.labels[-_CHECKED:])
    original_logits = network.answer(variables, few.images).astype(jnp.float32)
    of_targets = jnp.any((few.labels[:, None] == to_unlearn.target) & to_unlearn.wanted, axis=1)
    counted = jnp.where(jnp.all(of_targets), True, ~of_targets)[:, None]

    def invert_open(progress: _Progress, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Latents and success rates of new triggers, `[k, triggers, ...]`; zeros where none are wanted."""

        def one(index: jax.Array) -> tuple[jax.Array, jax.Array]:
            def inverted() -> tuple[jax.Array, jax.Array]:
                triggers, _ = invert_triggers(
                    network,
                    {**state, "params": progress.params},
                    batch,
                    switch[to_unlearn.family[index]],
                    to_unlearn.target[index],
                    aim=Within(to_unlearn.budget[index]),
                    steps=config.inversion.steps,
                    triggers=config.triggers,
                    starts=config.inversion.starts,
                    key=jax.random.fold_in(key, index),
                    first_start=progress.start[index],
                    batch_size=config.inversion.images,
                    axis_name=axis_name,
                    name=IMAGES,
                    on_step=on_step,
                )
                return triggers.parameters, triggers.success

            none = (jnp.zeros((config.triggers, switch.length)), jnp.zeros(config.triggers))
            return jax.lax.cond(progress.open[index], inverted, lambda: none)

        return jax.lax.map(one, jnp.arange(count))

    def remaining_success(progress: _Progress) -> jax.Array:
        """The success rate of the best trigger of the first round in the network as it is now, `[k]`."""
        current = {**state, "params": progress.params}

        def one(place: jax.Array) -> jax.Array:
            index, trigger = place // config.triggers, place % config.triggers
            family, target = to_unlearn.family[index], to_unlearn.target[index]
            best = switch[family].trigger(progress.latents[index, trigger][None], check[index][None])
            rate = success_rate(network, current, few, best, target[None])[0]
            return jnp.where(progress.success[index, trigger] > _WORKS, rate, 0.0)

        rates = jax.lax.map(one, jnp.arange(count * config.triggers))
        return jnp.max(rates.reshape(count, config.triggers), axis=1)

    def distortion_of(progress: _Progress) -> jax.Array:
        logits = network.answer({**state, "params": progress.params}, few.images).astype(jnp.float32)
        change = jnp.mean(jnp.abs(logits - original_logits), where=counted)
        return change / jnp.maximum(jnp.std(original_logits, where=counted), 1e-6)

    def one_round(progress: _Progress, number: jax.Array) -> tuple[_Progress, TriggerUnlearningInfo]:
        inversion_key, unlearning_key = jax.random.split(jax.random.fold_in(key, number))

        def unlearn() -> tuple[_Progress, TriggerUnlearningInfo]:
            latents, success = invert_open(progress, inversion_key)
            highest = jnp.max(success, axis=1)
            best = latents[jnp.arange(count), jnp.argmax(success, axis=1)]
            first = number * config.triggers
            current = progress._replace(
                latents=jax.lax.dynamic_update_slice(progress.latents, latents, (0, first, 0)),
                success=jax.lax.dynamic_update_slice(progress.success, success, (0, first)),
                start=jnp.where(progress.open[:, None], best, progress.start),
                # Without a trigger that works within the budget there is nothing to unlearn.
                open=progress.open & (highest > 0) & ~((progress.left <= _GONE) & (highest > _WORKS)),
            )
            wanted = jnp.any(current.open)
            current, loss = jax.lax.cond(
                wanted, lambda: distil(current, unlearning_key), lambda: (current, jnp.zeros(config.steps))
            )
            left = jnp.where(to_unlearn.wanted, remaining_success(current), 0.0)
            raised = jnp.minimum(config.emphasis * current.emphasis, _MAX_EMPHASIS)
            emphasis = jnp.where(left > _WORKS, raised, current.emphasis)
            distortion = distortion_of(current)
            info = TriggerUnlearningInfo(success, left, distortion, loss, wanted, jnp.array(False))
            still_open = wanted & (left > stop_success) & (distortion <= config.distortion)
            return current._replace(emphasis=emphasis, left=left, open=still_open), info

        def nothing() -> tuple[_Progress, TriggerUnlearningInfo]:
            none, no = jnp.zeros((count, config.triggers)), jnp.array(False)
            return progress, TriggerUnlearningInfo(
                none, jnp.zeros(count), jnp.zeros(()), jnp.zeros(config.steps), no, no
            )

        return jax.lax.cond(jnp.any(progress.open), unlearn, nothing)

    start = _Progress(
        params,
        optimizer.init(params),
        jnp.zeros((count, places, switch.length)),
        jnp.zeros((count, places)),
        to_unlearn.start,
        jnp.ones(count),
        jnp.where(to_unlearn.wanted, 1.0, 0.0),
        to_unlearn.wanted,
    )
    progress, info = jax.lax.scan(one_round, start, jnp.arange(config.rounds))
    reverted = jnp.max(progress.left) > _IN_VAIN
    extrapolation = jnp.min(jnp.where(to_unlearn.wanted, switch.numbers("extrapolation")[to_unlearn.family], jnp.inf))
    factor = jnp.where(reverted | ~info.done[0], 0.0, extrapolation)
    params = jax.tree.map(
        lambda new, old: jnp.where(factor > 0, old + factor * (new - old), old).astype(old.dtype),
        progress.params,
        params,
    )
    return {**state, "params": params}, info._replace(reverted=reverted)


def unlearn_nothing(
    variables: Variables, to_unlearn: TriggersToUnlearn, *, config: TriggerUnlearningConfig
) -> tuple[Variables, TriggerUnlearningInfo]:
    """What `unlearn_triggers` returns where there is nothing to unlearn, without compiling its rounds."""
    count, (rounds, triggers, steps) = len(to_unlearn.family), (config.rounds, config.triggers, config.steps)
    nothing = jnp.zeros((rounds, count, triggers)), jnp.zeros((rounds, count)), jnp.zeros(rounds)
    return variables, TriggerUnlearningInfo(
        *nothing, jnp.zeros((rounds, steps)), jnp.zeros(rounds, bool), jnp.zeros((), bool)
    )


def _unlearn_round(
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
    """The unlearning steps of one round, and their losses `[steps]`."""
    _, state = split(teacher)
    size = config.batch_size
    # In proportion to the squares of their success rates; a step unlearns triggers of one family and class.
    weights = jnp.where(progress.open[:, None], progress.success**2, 0.0)
    log_shares = jnp.log(jnp.sum(weights, axis=1) * progress.emphasis)

    def loss(
        params: Any, images: jax.Array, others: jax.Array, teacher_logits: jax.Array, emphasis: jax.Array
    ) -> jax.Array:
        logits = network.answer({**state, "params": params}, images).astype(jnp.float32)
        distance = (
            optax.huber_loss(logits.reshape(-1, 2, logits.shape[-1]), teacher_logits[:, None], delta=_HUBER) / _HUBER
        )
        sums = total((others @ jnp.mean(distance, axis=-1), jnp.sum(others)), axis_name)
        plain, triggered = sums[0] / jnp.maximum(sums[1], 1.0)
        return _PLAIN * plain + emphasis * triggered

    loss_and_grads = channels_last(jax.value_and_grad(loss))

    def step(carry: Any, number: jax.Array) -> tuple[Any, jax.Array]:
        params, opt_state = carry
        keys = jax.random.split(jax.random.fold_in(key, number), 3)
        chosen = own_part(jax.random.choice(keys[0], len(batch.labels), (size,)), axis_name, name=_SIZE)
        plain = batch.images[chosen]
        teacher_logits = network.answer(teacher, plain).astype(jnp.float32)
        index = jax.random.categorical(keys[1], log_shares)
        which = jax.random.categorical(keys[2], jnp.log(weights[index]), shape=(size,))
        which = own_part(which, axis_name, name=_SIZE)
        latents, family, budget = progress.latents[index][which], to_unlearn.family[index], to_unlearn.budget[index]

        def put(family: jax.Array, latent: jax.Array, image: jax.Array) -> jax.Array:
            return switch[family].apply(image[None], latent, budget)[0]

        triggered = jax.vmap(put, in_axes=(None, 0, 0))(family, latents, plain)
        others = (jnp.argmax(teacher_logits, axis=-1) != to_unlearn.target[index]).astype(jnp.float32)
        # Alternating, so that devices which share the images share the batch in the same way.
        images, emphasis = jnp.stack([plain, triggered], axis=1), progress.emphasis[index]
        images = images.reshape(-1, *plain.shape[1:])
        value, grads = loss_and_grads(params, images, others, teacher_logits, emphasis)
        grads = mean(grads, axis_name)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        # A cosine schedule down to zero in every round: the next inversion starts from a network at rest.
        decay = 0.5 * (1 + jnp.cos(jnp.pi * number / config.steps))
        updates = jax.tree.map(lambda leaf: (decay * leaf).astype(leaf.dtype), updates)
        if on_step is not None:
            jax.debug.callback(on_step)
        return (optax.apply_updates(params, updates), opt_state), value

    (params, opt_state), losses = jax.lax.scan(step, (progress.params, progress.opt_state), jnp.arange(config.steps))
    return progress._replace(params=params, opt_state=opt_state), losses
