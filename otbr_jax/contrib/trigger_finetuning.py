"""Fine-tuning on inverted triggers under their images' own labels, with images made from the network.

Weights move no further than needed: only a share of the way to the fine-tuned ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.contrib.images import SyntheticConfig, synthesize
from otbr_jax.errors import InputError
from otbr_jax.inversion import InversionConfigs, PenalisedConfig, success_rate
from otbr_jax.inversion.penalised import family_of, invert_families
from otbr_jax.settings import field, settings, wrong
from otbr_jax.steps.finetune import FinetuningConfig, finetune
from otbr_jax.types import Augment, Batch, Network, Variables, split, unchanged


@settings("trigger_finetuning")
class TriggerFinetuningConfig:
    """How a network is fine-tuned on inverted triggers."""

    triggers: int = field(
        default=0,
        at_least=0,
        doc="how many patches, and as many perturbations, are inverted in each round; 0 for no fine-tuning.",
    )
    classes: int = field(
        default=2, at_least=1, doc="how many flagged classes are fine-tuned at most, one after the other."
    )
    rounds: int = field(
        default=8,
        at_least=1,
        doc="how often triggers of the current network are inverted and fine-tuned on; as often again in each "
        "relearning phase.",
    )
    relearnings: int = field(
        formerly="recoveries",
        default=0,
        at_least=0,
        doc="how often the suspicious class is relearned, on images of it made from the fine-tuned network; in some "
        "networks the backdoor returns with it.",
    )
    relearned: int = field(
        formerly="recovered", default=60, at_least=1, doc="how many images of the class a phase makes."
    )
    patch: PenalisedConfig = field(
        default=PenalisedConfig(steps=40, size=30.0, images=60), doc="how patches are inverted."
    )
    perturbation: PenalisedConfig = field(
        default=PenalisedConfig(steps=40, learning_rate=0.03, size=30.0, images=60),
        doc="how perturbations are inverted.",
    )
    finetuning: FinetuningConfig = field(
        default=FinetuningConfig(epochs=6, batch_size=50, learning_rate=0.0003, schedule="cosine"),
        doc="activeness-aware fine-tuning of a round, on images without and with triggers.",
    )
    crop_padding: int = field(default=1, at_least=0, unit="pixels", doc="the largest random shift of an image.")
    shares: tuple[float, ...] = field(
        default=(*(step / 50 for step in range(10)), *(step / 20 for step in range(4, 21))),
        at_least=0,
        at_most=1,
        doc="shares of the way from the original weights to the fine-tuned ones to choose from, ascending.",
    )
    success: float = field(
        default=0.02,
        at_least=0,
        at_most=1,
        doc="the highest success rate of held-out triggers of the original network that is accepted.",
    )
    own: float = field(
        default=0.15,
        at_least=0,
        at_most=1,
        doc="the largest share of the suspicious class's images that may keep their prediction; unused in relearning "
        "phases.",
    )
    relearned_success: float = field(
        formerly="recovered_success",
        default=0.05,
        at_least=0,
        at_most=1,
        doc="the same as `success` after a relearning phase.",
    )

    def check(self) -> None:
        """Shares ascend."""
        if not self.shares or [*self.shares] != sorted(self.shares):
            raise wrong(self, "shares", "ascending shares")

    @property
    def searches(self) -> InversionConfigs:
        """How triggers are inverted, by family."""
        return {"patch": self.patch, "perturbation": self.perturbation}


Triggers = Mapping[str, Any]
"""Triggers of one class from different starts: `{family: parameters}`, a leading axis `[triggers]` on every array."""


class TriggerFinetuningInfo(NamedTuple):
    """What happened; phases are the fine-tuning and every relearning of the class.

    Attributes:
      loss: `[phases, rounds, epochs, steps]`, of each step's batch.
      success: `[phases, shares]`, success rate of the best held-out trigger.
      own: `[phases, shares]`, of the suspicious class's images, the share that is predicted as it: of the images that
        were given, which hold the trigger, and after a relearning phase of those that were made for it.
      share: `[phases]`, the share that was chosen; 0 for a class that is not flagged.
    """

    loss: jax.Array
    success: jax.Array
    own: jax.Array
    share: jax.Array


def finetune_classes(
    network: Network,
    variables: Variables,
    images: Batch,
    scores: jax.Array,
    *,
    threshold: float,
    key: jax.Array,
    config: TriggerFinetuningConfig,
    synthetic: SyntheticConfig,
    augment: Augment = unchanged,
) -> tuple[Variables, TriggerFinetuningInfo]:
    """Fine-tunes for each flagged class in turn, the one with the highest score first. Pure; jits.

    A class that is easy to imitate may be flagged beside the attacker's, or before it. Since fine-tuning goes no
    further than needed, a class without a backdoor costs little. Images of flagged classes are left out of all
    fine-tuning: those of the attacker's class would restore its backdoor while another class is fine-tuned.

    Takes what `finetune_class` takes, but for:
      scores: `[classes]`, the anomaly scores.
      threshold: the score from which a class is flagged.

    Returns:
      The variables, unchanged where no class is flagged; and the info of `finetune_class` for each of the
      `config.classes` most suspicious classes, with a leading axis.
    """
    suspects = jnp.argsort(-scores, stable=True)[: config.classes]
    trusted = jnp.ones(len(scores), bool).at[suspects].set(scores[suspects] < threshold)

    def one(now: Variables, inputs: Any) -> tuple[Variables, TriggerFinetuningInfo]:
        suspect, key = inputs
        apply = partial(
            finetune_class,
            network,
            trusted=trusted[images.labels],
            key=key,
            config=config,
            synthetic=synthetic,
            augment=augment,
        )
        shapes = jax.eval_shape(apply, now, images, suspect)[1]
        return jax.lax.cond(
            scores[suspect] >= threshold,
            lambda: apply(now, images, suspect),
            lambda: (now, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)),
        )

    return jax.lax.scan(one, variables, (suspects, jax.random.split(key, len(suspects))))


def finetune_class(
    network: Network,
    variables: Variables,
    images: Batch,
    suspect: jax.Array | int,
    *,
    trusted: jax.Array | None = None,
    key: jax.Array,
    config: TriggerFinetuningConfig,
    synthetic: SyntheticConfig,
    augment: Augment = unchanged,
) -> tuple[Variables, TriggerFinetuningInfo]:
    """Fine-tunes on images without and with a suspicious class's triggers, under their own labels. Pure; jits.

    Images of the suspicious class itself are left out at first. Made from the network, they hold the trigger and would
    restore the backdoor; they only measure what is left of it. This costs accuracy on the class. A relearning phase
    therefore makes new images of the class from the fine-tuned network, in which the trigger no longer works, and
    fine-tunes on them too.

    After each phase the weights go a share of the way from those before it to those after it, see `choose_share`.

    Everything runs in evaluation mode: running statistics stay those of real images, since those of synthetic images
    differ. Guarantee: touches no data but `images`.

    Args:
      network: the functions of the network.
      variables: the suspicious network's variables.
      images: `[n, h, w, c]` in [0, 1], usually synthetic, and the network's predictions `[n]`.
      suspect: the suspicious class; may be traced.
      trusted: bool `[n]`, which images are fine-tuned on; by default all. Those of the suspicious class never are.
      key: typed PRNG key.
      config: how.
      synthetic: how images are made in a relearning phase.
      augment: `(images, key) -> images`, both in [0, 1], of the images that are fine-tuned on.

    Raises:
      InputError: if three times the images are less than a batch, `triggers` is 0, or `relearned` is more than the
        images that are made.
    """
    if not config.triggers:
        raise InputError("trigger_finetuning.triggers: expected at least 1, found 0")
    if config.relearnings and config.relearned > synthetic.images:
        raise InputError(
            f"trigger_finetuning.relearned: expected at most {synthetic.images}, all that are made, found "
            f"{config.relearned}"
        )
    frozen = dataclasses.replace(network, apply_train=None)
    search = partial(invert_several, network, batch=images, suspect=suspect, config=config)
    usable = images.labels != suspect if trusted is None else (images.labels != suspect) & trusted
    # Some of them twice where others are left out.
    others = jnp.argsort(~usable, stable=True)
    others = others[jnp.arange(len(others)) % jnp.maximum(jnp.sum(usable), 1)]
    plain = Batch(images.images[others], images.labels[others])
    which = jnp.arange(len(others)) % config.triggers
    params, state = split(variables)
    round_key, held_out_key = jax.random.split(key)
    held_out = search(variables, key=held_out_key)
    shares = jnp.array(config.shares, jnp.float32)

    def one_round(now: Any, key: jax.Array, *, own: Batch) -> tuple[Any, jax.Array]:
        search_key, tune_key = jax.random.split(key)
        inverted = search({**state, "params": now}, key=search_key)
        triggered = [
            jax.vmap(lambda image, own, name=name: family_of(name).trigger(own)(image))(
                plain.images, jax.tree.map(lambda leaf: leaf[which], triggers)
            )
            for name, triggers in inverted.items()
        ]
        batch = Batch(
            jnp.concatenate([plain.images, *triggered, own.images]),
            jnp.concatenate([jnp.tile(plain.labels, 1 + len(triggered)), own.labels]),
        )
        tuned, info = finetune(
            frozen,
            {**state, "params": now},
            batch,
            key=tune_key,
            config=config.finetuning,
            augment=augment,
        )
        return jax.tree.map(lambda new, old: new.astype(old.dtype), tuned["params"], now), info.loss

    def make_images(now: Any, key: jax.Array) -> Batch:
        labels = jnp.arange(synthetic.images, dtype=jnp.int32) % network.num_classes
        labels = jnp.where(jnp.arange(synthetic.images) < config.relearned, suspect, labels)
        made, _ = synthesize(network, {**state, "params": now}, labels=labels, key=key, config=synthetic)
        return Batch(made.images[: config.relearned], made.labels[: config.relearned])

    def own_images(before: Any, relearning: jax.Array, key: jax.Array) -> Batch:
        if not config.relearnings:
            return Batch(plain.images[:0], plain.labels[:0])
        # One program for all phases: the first uses as many images of other classes in their place.
        stand_in = jnp.arange(config.relearned) % len(others)
        return jax.lax.cond(
            relearning, lambda: make_images(before, key), lambda: Batch(plain.images[stand_in], plain.labels[stand_in])
        )

    def one_phase(before: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, TriggerFinetuningInfo]:
        relearning, key = inputs
        make_key, key = jax.random.split(key)
        own = own_images(before, relearning, make_key)
        after, loss = jax.lax.scan(partial(one_round, own=own), before, jax.random.split(key, config.rounds))

        def towards(share: jax.Array) -> Any:
            return jax.tree.map(lambda old, new: ((1 - share) * old + share * new).astype(old.dtype), before, after)

        def measure(share: jax.Array) -> tuple[jax.Array, jax.Array]:
            then = {**state, "params": towards(share)}
            success, kept = measure_triggers(network, then, images, suspect, held_out)
            if not config.relearnings:
                return success, kept
            predictions = jnp.argmax(network.answer(then, own.images), axis=-1)
            return success, jnp.where(relearning, jnp.mean(predictions == suspect), kept)

        success, kept = jax.lax.map(measure, shares)
        chosen = choose_share(success, kept, relearning=relearning, config=config)
        return towards(shares[chosen]), TriggerFinetuningInfo(loss, success, kept, shares[chosen])

    phases = 1 + config.relearnings
    finetuned, info = jax.lax.scan(one_phase, params, (jnp.arange(phases) > 0, jax.random.split(round_key, phases)))
    return {**state, "params": finetuned}, info


def choose_share(
    success: jax.Array, own: jax.Array, *, relearning: jax.Array | bool, config: TriggerFinetuningConfig
) -> jax.Array:
    """The index of the share to choose, the first of several that are as good.

    Candidates are the shares at which triggers hardly work (`config.success`, after a relearning phase
    `config.relearned_success`). In the first phase few of the class's images, which hold the trigger, may keep their
    prediction (`config.own`). The share that keeps most of the class is chosen.

    If no share leaves so few images, the one that leaves fewest is chosen; if triggers work at all shares, the one at
    which they work least.

    Args:
      success: `[shares]`, success rate of held-out triggers.
      own: `[shares]`, share of the class's images that is predicted as it.
      relearning: whether the phase fine-tunes on the class's own images.
      config: the limits.
    """
    dead = success <= jnp.where(relearning, config.relearned_success, config.success)
    enough = dead & (relearning | (own <= config.own))
    fewest = jnp.where(jnp.any(dead), jnp.argmin(jnp.where(dead, own, jnp.inf)), jnp.argmin(success))
    return jnp.where(jnp.any(enough), jnp.argmax(jnp.where(enough, own, -1.0)), fewest)


def invert_several(
    network: Network,
    variables: Variables,
    *,
    batch: Batch,
    suspect: jax.Array | int,
    key: jax.Array,
    config: TriggerFinetuningConfig,
) -> Triggers:
    """`config.triggers` triggers of each family for one class, from random starts. Arguments as `finetune_class`."""

    def one(key: jax.Array) -> Triggers:
        inverted = invert_families(network, variables, batch, suspect, key=key, configs=config.searches)
        return {name: each.parameters for name, each in inverted.items()}

    return jax.lax.map(one, jax.random.split(key, config.triggers))


def measure_triggers(
    network: Network,
    variables: Variables,
    batch: Batch,
    suspect: jax.Array | int,
    triggers: Triggers,
) -> tuple[jax.Array, jax.Array]:
    """Success rate of the best of some triggers, and the share of the suspicious class's images predicted as it."""

    def one(trigger: Mapping[str, Any]) -> jax.Array:
        rates = [
            success_rate(network, variables, batch, family_of(name).trigger(parameters), suspect)
            for name, parameters in trigger.items()
        ]
        return jnp.max(jnp.stack(rates))

    own = batch.labels == suspect
    kept = own & (jnp.argmax(network.answer(variables, batch.images), axis=-1) == suspect)
    return jnp.max(jax.lax.map(one, triggers)), jnp.sum(kept) / jnp.maximum(jnp.sum(own), 1)
