"""I-BAU: a universal adversarial trigger is inverted, and unlearned by hypergradients (arXiv 2110.03735).

The trigger depends on the weights, so that the gradient of unlearning has two parts: the direct one, and one through
the trigger. The second follows from the implicit function theorem, by fixed-point iteration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from otbr_jax.defenses.defense import Defense, Outcome
from otbr_jax.defenses.tuning import Tuned, changes_step, check_tuned, takes_clean, tuned_outcome
from otbr_jax.graph.choose import LAYERS
from otbr_jax.inversion import descend
from otbr_jax.numerics.collectives import mean, per_device
from otbr_jax.numerics.convolutions import channels_last
from otbr_jax.plan import LongStep, Plan, Setup, Shown, needs
from otbr_jax.settings import field, settings
from otbr_jax.steps.finetune import Finetuning, FinetuningConfig, begin, variables_of
from otbr_jax.steps.objective import losses
from otbr_jax.steps.unlearn import epoch_draws
from otbr_jax.types import Batch, Network, Variables, split


@settings("i_bau")
class IBAUConfig:
    """The whole method; the defaults are the published ones."""

    rounds: int = field(default=5, at_least=1, doc="how often a trigger is inverted and unlearned.")
    batch_size: int = field(
        default=256,
        at_least=1,
        doc="images per step, over all devices together; a round's last, incomplete batch is left out.",
    )
    learning_rate: float = field(default=1e-4, above=0, doc="of Adam, for unlearning; a step for each batch.")
    portion: float = field(
        default=0.01,
        at_least=0,
        at_most=1,
        doc="share of a batch that carries the trigger in unlearning, rounded down; at least one image.",
    )
    ascent_rate: float = field(default=10.0, above=0, doc="learning rate of the inversion; a step for each batch.")
    penalty: float = field(default=0.001, at_least=0, doc="of the trigger's squared L2 norm, in the inversion.")
    norm: float = field(default=10.0, above=0, doc="largest L2 norm of a trigger, in the network's input.")
    iterations: int = field(
        default=5, at_least=0, doc="the paper's K, of the fixed-point iteration; 0 for the direct gradient alone."
    )
    inner_rate: float = field(default=0.1, above=0, doc="step of the map whose fixed point the trigger is.")
    layers: str = field(default="auto", choices=LAYERS, doc="whose neurons the report shows; see `choose_layers`.")


@settings("")
class IBAUSettings:
    """All settings of the defence `i_bau`."""

    i_bau: IBAUConfig = field(default=IBAUConfig(), doc="the published method.")


class UnlearningState(NamedTuple):
    """The state after some of the rounds; the numbers are `[rounds]`, NaN for rounds to come."""

    tuning: Finetuning
    loss: jax.Array
    accuracy: jax.Array
    trigger: jax.Array
    rounds: jax.Array


def inversion_loss(
    network: Network, trigger: jax.Array, variables: Variables, batch: Batch, *, penalty: float
) -> jax.Array:
    """The loss of the inversion: the negative cross-entropy of images that carry the trigger, plus its penalty."""
    logits = network.apply(variables, batch.images + trigger)
    return -jnp.mean(losses(logits, batch.labels)) + penalty * jnp.sum(trigger**2)


def search(
    network: Network,
    variables: Variables,
    draws: Any,
    batch_of: Callable[[Any], Batch],
    *,
    config: IBAUConfig,
    axis_name: str | None = None,
) -> jax.Array:
    """Inverts a trigger `[h, w, c]` that changes the predictions of images; from zero, by SGD.

    Args:
      network: the functions of the network.
      variables: its variables.
      draws: one for each step, along the leading axis.
      batch_of: `draw -> Batch`, images `[n, h, w, c]` as the network takes them.
      config: rate, penalty and norm.
      axis_name: mapped axis whose devices share each batch.
    """

    def with_predictions(number: jax.Array) -> Batch:
        images = batch_of(jax.tree.map(lambda leaf: leaf[number], draws)).images
        return Batch(images, jnp.argmax(network.apply(variables, images), axis=-1))

    inverted, _ = descend(
        lambda trigger, batch, _: inversion_loss(network, trigger, variables, batch, penalty=config.penalty),
        jnp.zeros(network.image_shape),
        optimizer=optax.sgd(config.ascent_rate),
        steps=len(jax.tree.leaves(draws)[0]),
        batches=with_predictions,
        axis_name=axis_name,
    )
    return inverted.point * jnp.minimum(1.0, config.norm / jnp.maximum(_norm(inverted.point), 1e-12))


def hypergradient(
    outer: Callable[[Any, Any], tuple[jax.Array, Any]],
    inner: Callable[[Any, Any], jax.Array],
    trigger: jax.Array,
    params: Any,
    *,
    iterations: int,
    rate: float,
    axis_name: str | None = None,
) -> tuple[tuple[jax.Array, Any], Any]:
    """The gradient of `outer(t(params), params)`, where `t(params)` is a minimum of `inner(., params)`.

    By the implicit function theorem on the map `t -> t - rate d inner / dt`, whose inverse is a sum of as many terms as
    there are iterations.

    Args:
      outer: `(trigger, params) -> (loss, more)`.
      inner: `(trigger, params) -> loss`.
      trigger: an array, where `inner` is lowest, or near it.
      params: any pytree.
      iterations: of the fixed point; with 0 the direct gradient alone.
      rate: of the map, below 2 over the largest curvature of `inner`.
      axis_name: mapped axis over which losses are means.

    Returns:
      `((loss, more), gradients)`, the latter like `params`. Source: Grazzi et al., arXiv 2006.16218, algorithm 2.
    """
    value_and_grads = channels_last(jax.value_and_grad(outer, argnums=(0, 1), has_aux=True))
    (loss, more), (slope, direct) = value_and_grads(trigger, params)
    loss, slope, direct = mean((loss, slope, direct), axis_name)

    def along(trigger: Any, params: Any, direction: Any) -> jax.Array:
        return jnp.sum(jax.grad(inner)(trigger, params) * direction)

    curvature, mixed = (channels_last(jax.grad(along, argnums=place)) for place in (0, 1))
    direction = jax.lax.fori_loop(
        0,
        iterations,
        lambda _, v: v - rate * mean(curvature(trigger, params, v), axis_name) + slope,
        jnp.zeros_like(trigger),
    )
    indirect = mean(mixed(trigger, params, direction), axis_name)
    return (loss, more), jax.tree.map(lambda g, i: g - rate * i, direct, indirect)


def start(setup: Setup, config: IBAUConfig, *, victim: Variables, clean: Batch, key: jax.Array) -> UnlearningState:
    """The state before the first round."""
    del setup, clean, key
    nothing = jnp.full(config.rounds, jnp.nan)
    return UnlearningState(begin(victim, optax.adam(config.learning_rate)), nothing, nothing, nothing, jnp.int32(0))


def next_round(
    setup: Setup, config: IBAUConfig, state: UnlearningState, *, victim: Variables, clean: Batch, key: jax.Array
) -> tuple[UnlearningState, dict[str, jax.Array]]:
    """Inverts a trigger, and unlearns it batch by batch; in evaluation mode, so that statistics stay.

    Batches of the inversion are drawn anew in each round, those of unlearning once for all rounds, as published.
    """
    network, axis_name = setup.network, setup.axis_name
    like, _ = split(victim)
    size = per_device(config.batch_size, axis_name, name="i_bau.batch_size")
    carrying = max(1, int(config.portion * size))
    optimizer = optax.adam(config.learning_rate)

    def batch_of(draw: Any) -> Batch:
        chosen, own = draw
        images = network.prepare(setup.augment(clean.images[chosen], own))
        return Batch(images, clean.labels[chosen])

    def with_params(params: Any) -> Variables:
        return {"params": jax.tree.map(lambda p, own: p.astype(own.dtype), params, like), **state.tuning.state}

    fixed_key, round_key = jax.random.split(key)
    round_key = jax.random.fold_in(round_key, state.rounds)
    fixed = epoch_draws(len(clean.labels), size, key=fixed_key)
    draws = epoch_draws(len(clean.labels), size, key=round_key)
    trigger = search(network, with_params(state.tuning.params), draws, batch_of, config=config, axis_name=axis_name)
    first = batch_of(jax.tree.map(lambda leaf: leaf[0], fixed))

    def inner(trigger: Any, params: Any) -> jax.Array:
        return inversion_loss(network, trigger, with_params(params), first, penalty=config.penalty)

    def unlearn(tuning: Finetuning, drawn: Any) -> tuple[Finetuning, tuple[jax.Array, jax.Array]]:
        draw, carry_key = drawn
        batch = batch_of(draw)
        carries = jnp.zeros(size).at[jax.random.permutation(carry_key, size)[:carrying]].set(1)

        def outer(trigger: Any, params: Any) -> tuple[jax.Array, jax.Array]:
            logits = network.apply(with_params(params), batch.images + carries[:, None, None, None] * trigger)
            right = jnp.argmax(logits, axis=-1) == batch.labels
            return jnp.mean(losses(logits, batch.labels)), jnp.mean(right.astype(jnp.float32))

        (loss, accuracy), grads = hypergradient(
            outer,
            inner,
            trigger,
            tuning.params,
            iterations=config.iterations,
            rate=config.inner_rate,
            axis_name=axis_name,
        )
        updates, opt_state = optimizer.update(grads, tuning.opt_state, tuning.params)
        params = optax.apply_updates(tuning.params, updates)
        return Finetuning(params, tuning.state, opt_state), (loss, mean(accuracy, axis_name))

    keys = jax.random.split(jax.random.fold_in(round_key, 1), len(fixed[1]))
    tuning, (loss, accuracy) = jax.lax.scan(unlearn, state.tuning, (fixed, keys))
    shown = {"loss": jnp.mean(loss), "acc": jnp.mean(accuracy)}
    at = state.rounds
    next_state = UnlearningState(
        tuning,
        state.loss.at[at].set(shown["loss"]),
        state.accuracy.at[at].set(shown["acc"]),
        state.trigger.at[at].set(_norm(trigger)),
        at + 1,
    )
    return next_state, shown


def is_done(setup: Setup, config: IBAUConfig, state: UnlearningState) -> jax.Array:
    """Whether all rounds are done, or the loss is not finite."""
    del setup
    diverged = (state.rounds > 0) & ~jnp.isfinite(state.loss[state.rounds - 1])
    return (state.rounds >= config.rounds) | diverged


def unlearned_network(setup: Setup, config: IBAUConfig, state: UnlearningState) -> Tuned:
    """The network after the last round; its history has the L2 norms of the triggers, too."""
    del setup, config
    history = {"loss": state.loss, "accuracy": state.accuracy, "trigger_norm": state.trigger}
    return Tuned(variables_of(state.tuning), history)


def check_unlearned(config: IBAUConfig, unlearned: Tuned) -> None:
    """Raises InputError if unlearning diverged."""
    as_epochs = FinetuningConfig(epochs=config.rounds, learning_rate=config.learning_rate)
    check_tuned(as_epochs, unlearned, name="i_bau.learning_rate")


def plan(config: IBAUSettings) -> Plan:
    """unlearned -> changes."""
    return (
        LongStep(
            "unlearned",
            unlearned_network,
            needs("victim", "clean"),
            config.i_bau,
            check=check_unlearned,
            init=start,
            body=next_round,
            done=is_done,
            count=lambda state: state.rounds,
            shown=Shown("inverting and unlearning triggers", total=config.i_bau.rounds, unit="round"),
        ),
        changes_step("unlearned"),
    )


def batch_sizes(config: IBAUSettings) -> dict[str, int]:
    """The batches that devices share."""
    return {"i_bau.batch_size": config.i_bau.batch_size}


def outcome(config: IBAUSettings, values: Mapping[str, Any]) -> Outcome:
    """The history of the rounds."""
    del config
    done = "triggers inverted and unlearned by hypergradients"
    return tuned_outcome(values, done=done, tuned="unlearned", scored="Which neurons unlearning changed")


def _norm(array: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(array**2))


DEFENSE = Defense(
    name="i_bau",
    Config=IBAUSettings,
    data="clean images",
    layers=lambda config: config.i_bau.layers,
    plan=plan,
    networks=lambda config: ("victim", "unlearned"),
    outcome=outcome,
    given=takes_clean(batch_sizes),
    batch_sizes=batch_sizes,
    source="arXiv 2110.03735",
)
