"""Teaching a network that the triggers found in it mean nothing, on images that were made from it; and no more of that
than is needed."""

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
    """How a network is patched."""

    triggers: int = field(
        default=0,
        at_least=0,
        doc="how many patches, and as many perturbations, are searched in each round; 0 for no patching.",
    )
    classes: int = field(
        default=2, at_least=1, doc="how many of the classes that stand out are patched, one after the other."
    )
    rounds: int = field(
        default=8,
        at_least=1,
        doc="how often triggers are searched in the network as it is then, and taught; as often again in each "
        "recovery.",
    )
    relearnings: int = field(
        formerly="recoveries",
        default=0,
        at_least=0,
        doc="how often images of the suspicious class are made from the patched network, and taught too; that brings "
        "the class back and, with some networks, the backdoor.",
    )
    relearned: int = field(formerly="relearned", default=60, at_least=1, doc="how many of them.")
    patch: PenalisedConfig = field(
        default=PenalisedConfig(steps=40, size=30.0, images=60), doc="how patches are searched."
    )
    perturbation: PenalisedConfig = field(
        default=PenalisedConfig(steps=40, learning_rate=0.03, size=30.0, images=60),
        doc="how perturbations are searched.",
    )
    finetuning: FinetuningConfig = field(
        default=FinetuningConfig(epochs=6, batch_size=50, learning_rate=0.0003, schedule="cosine"),
        doc="activeness-aware fine-tuning of a round, on images without and with triggers.",
    )
    crop_padding: int = field(default=1, at_least=0, unit="pixels", doc="how far images are moved at random, at most.")
    shares: tuple[float, ...] = field(
        default=(*(step / 50 for step in range(10)), *(step / 20 for step in range(4, 21))),
        at_least=0,
        at_most=1,
        doc="how much of the way from the original network to the patched one may be gone, ascending.",
    )
    success: float = field(
        default=0.02,
        at_least=0,
        at_most=1,
        doc="how well triggers of the original network that were not taught may still work.",
    )
    own: float = field(
        default=0.15,
        at_least=0,
        at_most=1,
        doc="how many of the suspicious class's images may keep their answer; not asked after a recovery.",
    )
    relearned_success: float = field(
        formerly="recovered_success",
        default=0.05,
        at_least=0,
        at_most=1,
        doc="how well triggers may work again after a recovery.",
    )

    def check(self) -> None:
        """Shares ascend."""
        if not self.shares or [*self.shares] != sorted(self.shares):
            raise wrong(self, "shares", "ascending shares")

    @property
    def searches(self) -> InversionConfigs:
        """How triggers are searched, by family."""
        return {"patch": self.patch, "perturbation": self.perturbation}


Triggers = Mapping[str, Any]
"""Triggers of one class from different starts: `{family: parameters}`, a leading axis `[triggers]` on every array."""


class TriggerFinetuningInfo(NamedTuple):
    """How it went; phases are the patching and every recovery.

    Attributes:
      loss: `[phases, rounds, epochs, steps]`, of each step's batch.
      success: `[phases, shares]`, how well the best trigger that was not taught works.
      own: `[phases, shares]`, of the suspicious class's images, the share that is taken for it: of those that were
        given, which hold the trigger, and after a recovery of those that were made for it.
      share: `[phases]`, the share that was taken; 0 for a class that does not stand out.
    """

    loss: jax.Array
    success: jax.Array
    own: jax.Array
    share: jax.Array


def finetune_classes(
    network: Network,
    variables: Variables,
    images: Batch,
    suspicion: jax.Array,
    *,
    threshold: float,
    key: jax.Array,
    config: TriggerFinetuningConfig,
    synthetic: SyntheticConfig,
    augment: Augment = unchanged,
) -> tuple[Variables, TriggerFinetuningInfo]:
    """Patches the classes that stand out, the most suspicious first, each in what the one before left. Pure; jits.

    A class that is easy to imitate may stand out beside the attacker's, or before it; patched no further than needed,
    a class that holds no backdoor costs little. Images of none of them are taught: those of the attacker's class would
    bring its backdoor back while another one is patched.

    Takes what `patch` takes, but for:
      suspicion: `[classes]`, how far each class stands out.
      threshold: from where a class is patched.

    Returns:
      The variables as they were where no class stands out; and what `patch` says of each of the `config.classes` most
      suspicious classes, in a leading axis.
    """
    suspects = jnp.argsort(-suspicion, stable=True)[: config.classes]
    trusted = jnp.ones(len(suspicion), bool).at[suspects].set(suspicion[suspects] < threshold)

    def one(now: Variables, drawn: Any) -> tuple[Variables, TriggerFinetuningInfo]:
        suspect, key = drawn
        apply = partial(
            patch,
            network,
            trusted=trusted[images.labels],
            key=key,
            config=config,
            synthetic=synthetic,
            augment=augment,
        )
        shapes = jax.eval_shape(apply, now, images, suspect)[1]
        return jax.lax.cond(
            suspicion[suspect] >= threshold,
            lambda: apply(now, images, suspect),
            lambda: (now, jax.tree.map(lambda found: jnp.zeros(found.shape, found.dtype), shapes)),
        )

    return jax.lax.scan(one, variables, (suspects, jax.random.split(key, len(suspects))))


def patch(
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
    """Fine-tunes on images, and on the same with a suspicious class's triggers, under their own labels. Pure; jits.

    Images of the suspicious class itself are left out at first: made from the network, they hold what the backdoor
    looks for, and would bring it back. They are asked afterwards instead. That costs the class; in a recovery images of
    it are made anew, from the patched network, in which the trigger is dead and only the class is left, and taught too.

    After each phase one goes a share of the way from the network before it to the one after it, see `how_far`.

    Everything runs in evaluation mode: running statistics stay those of real images, for which synthetic ones are no
    match. Guarantee: touches no data but `images`.

    Args:
      network: the functions of the network.
      variables: the suspicious network's variables.
      images: `[n, h, w, c]` in [0, 1], usually synthetic, and what the network answers them with, `[n]`.
      suspect: the suspicious class; may be traced.
      trusted: bool `[n]`, which images may be taught; by default all. Those of the suspicious class never are.
      key: typed PRNG key.
      config: how.
      synthetic: how images are made in a recovery.
      augment: `(images, key) -> images`, both in [0, 1], of the images that are fine-tuned on.

    Raises:
      InputError: if three times the images are less than a batch, no triggers are asked for, or more of the class's
        images than are made.
    """
    if not config.triggers:
        raise InputError("trigger_finetuning.triggers: expected at least 1, found 0")
    if config.relearnings and config.relearned > synthetic.images:
        raise InputError(
            f"trigger_finetuning.relearned: expected at most {synthetic.images}, all that are made, found "
            f"{config.relearned}"
        )
    frozen = dataclasses.replace(network, apply_train=None)
    search = partial(search_triggers, network, batch=images, suspect=suspect, config=config)
    taught = images.labels != suspect if trusted is None else (images.labels != suspect) & trusted
    # Some of them twice where others are left out.
    others = jnp.argsort(~taught, stable=True)
    others = others[jnp.arange(len(others)) % jnp.maximum(jnp.sum(taught), 1)]
    plain = Batch(images.images[others], images.labels[others])
    which = jnp.arange(len(others)) % config.triggers
    params, state = split(variables)
    round_key, held_out_key = jax.random.split(key)
    held_out = search(variables, key=held_out_key)
    shares = jnp.array(config.shares, jnp.float32)

    def one_round(now: Any, key: jax.Array, *, own: Batch) -> tuple[Any, jax.Array]:
        search_key, tune_key = jax.random.split(key)
        found = search({**state, "params": now}, key=search_key)
        triggered = [
            jax.vmap(lambda image, own, name=name: family_of(name).trigger(own)(image))(
                plain.images, jax.tree.map(lambda leaf: leaf[which], triggers)
            )
            for name, triggers in found.items()
        ]
        lesson = Batch(
            jnp.concatenate([plain.images, *triggered, own.images]),
            jnp.concatenate([jnp.tile(plain.labels, 1 + len(triggered)), own.labels]),
        )
        tuned, info = finetune(
            frozen,
            {**state, "params": now},
            lesson,
            key=tune_key,
            config=config.finetuning,
            augment=augment,
        )
        return jax.tree.map(lambda new, old: new.astype(old.dtype), tuned["params"], now), info.loss

    def made(now: Any, key: jax.Array) -> Batch:
        labels = jnp.arange(synthetic.images, dtype=jnp.int32) % network.num_classes
        labels = jnp.where(jnp.arange(synthetic.images) < config.relearned, suspect, labels)
        found, _ = synthesize(network, {**state, "params": now}, labels=labels, key=key, config=synthetic)
        return Batch(found.images[: config.relearned], found.labels[: config.relearned])

    def own_images(before: Any, recovery: jax.Array, key: jax.Array) -> Batch:
        if not config.relearnings:
            return Batch(plain.images[:0], plain.labels[:0])
        # One program for all phases: the first is taught as many images of other classes in their place.
        stand_in = jnp.arange(config.relearned) % len(others)
        return jax.lax.cond(
            recovery, lambda: made(before, key), lambda: Batch(plain.images[stand_in], plain.labels[stand_in])
        )

    def one_phase(before: Any, drawn: tuple[jax.Array, jax.Array]) -> tuple[Any, TriggerFinetuningInfo]:
        recovery, key = drawn
        make_key, key = jax.random.split(key)
        own = own_images(before, recovery, make_key)
        after, loss = jax.lax.scan(partial(one_round, own=own), before, jax.random.split(key, config.rounds))

        def towards(share: jax.Array) -> Any:
            return jax.tree.map(lambda old, new: ((1 - share) * old + share * new).astype(old.dtype), before, after)

        def asked(share: jax.Array) -> tuple[jax.Array, jax.Array]:
            then = {**state, "params": towards(share)}
            success, kept = ask(network, then, images, suspect, held_out)
            if not config.relearnings:
                return success, kept
            answers = jnp.argmax(network.answer(then, own.images), axis=-1)
            return success, jnp.where(recovery, jnp.mean(answers == suspect), kept)

        success, taken = jax.lax.map(asked, shares)
        chosen = how_far(success, taken, recovery=recovery, config=config)
        return towards(shares[chosen]), TriggerFinetuningInfo(loss, success, taken, shares[chosen])

    phases = 1 + config.relearnings
    patched, info = jax.lax.scan(one_phase, params, (jnp.arange(phases) > 0, jax.random.split(round_key, phases)))
    return {**state, "params": patched}, info


def how_far(
    success: jax.Array, own: jax.Array, *, recovery: jax.Array | bool, config: TriggerFinetuningConfig
) -> jax.Array:
    """The index of the share to take, the first where several are as good.

    Of the shares at which triggers hardly work, that with most of the class: at first `config.success`, and with few of
    the class's images, which hold the trigger (`config.own`); after a recovery `config.relearned_success`. Where so few
    of the images are never reached, that with fewest; and where triggers always work, that at which they work least.

    Args:
      success: `[shares]`, how well triggers that were not taught work.
      own: `[shares]`, how many of the class's images are taken for it.
      recovery: whether the class's own images were taught.
      config: how little is enough.
    """
    dead = success <= jnp.where(recovery, config.relearned_success, config.success)
    enough = dead & (recovery | (own <= config.own))
    fewest = jnp.where(jnp.any(dead), jnp.argmin(jnp.where(dead, own, jnp.inf)), jnp.argmin(success))
    return jnp.where(jnp.any(enough), jnp.argmax(jnp.where(enough, own, -1.0)), fewest)


def search_triggers(
    network: Network,
    variables: Variables,
    *,
    batch: Batch,
    suspect: jax.Array | int,
    key: jax.Array,
    config: TriggerFinetuningConfig,
) -> Triggers:
    """`config.triggers` triggers of each family for one class, each from its own start. Takes what `patch` takes."""

    def one(key: jax.Array) -> Triggers:
        found = invert_families(network, variables, batch, suspect, key=key, configs=config.searches)
        return {name: each.parameters for name, each in found.items()}

    return jax.lax.map(one, jax.random.split(key, config.triggers))


def ask(
    network: Network,
    variables: Variables,
    batch: Batch,
    suspect: jax.Array | int,
    triggers: Triggers,
) -> tuple[jax.Array, jax.Array]:
    """How well the best of some triggers works, and how many of the suspicious class's images keep their answer."""

    def one(trigger: Mapping[str, Any]) -> jax.Array:
        found = [
            success_rate(network, variables, batch, family_of(name).trigger(parameters), suspect)
            for name, parameters in trigger.items()
        ]
        return jnp.max(jnp.stack(found))

    own = batch.labels == suspect
    kept = own & (jnp.argmax(network.answer(variables, batch.images), axis=-1) == suspect)
    return jnp.max(jax.lax.map(one, triggers)), jnp.sum(kept) / jnp.maximum(jnp.sum(own), 1)
