"""Teaching a network that the triggers found in it mean nothing, on images that were made from it; and no more of that
than is needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.errors import InputError
from otbr_jax.finetuning import FinetuningConfig, finetune
from otbr_jax.inversion import (
    InversionConfig,
    changed_success,
    invert_patch,
    invert_perturbation,
    perturb,
    stamp,
    trigger_success,
)
from otbr_jax.types import Batch, Network, Variables, split


@dataclasses.dataclass(frozen=True)
class PatchingConfig:
    """How a network is patched.

    Attributes:
      triggers: how many patches, and as many perturbations, are searched in each round; 0 for no patching.
      classes: how many of the classes that stand out are patched, one after the other.
      rounds: how often triggers are searched in the network as it is then, and taught.
      patch: how patches are searched.
      perturbation: how perturbations are searched.
      finetuning: activeness-aware fine-tuning of a round, on images without and with triggers.
      crop_padding: pixels by which images are moved at random, at most.
      shares: how much of the way from the original network to the patched one may be gone, each in [0, 1], ascending.
      success: how well triggers of the original network that were not taught may still work, in [0, 1].
      own: how many of the suspicious class's images may keep their answer, in [0, 1].
    """

    triggers: int = 0
    classes: int = 2
    rounds: int = 8
    patch: InversionConfig = InversionConfig(steps=40, size=30.0)
    perturbation: InversionConfig = InversionConfig(steps=40, learning_rate=0.03, size=30.0)
    finetuning: FinetuningConfig = FinetuningConfig(epochs=6, batch_size=50, learning_rate=0.0003, schedule="cosine")
    crop_padding: int = 1
    shares: tuple[float, ...] = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    success: float = 0.02
    own: float = 0.35

    def __post_init__(self) -> None:
        for field, least in (("triggers", 0), ("classes", 1), ("rounds", 1), ("crop_padding", 0)):
            if getattr(self, field) < least:
                raise InputError(f"patching.{field}: expected a number from {least}, found {getattr(self, field)}")
        if not self.shares or [*self.shares] != sorted(self.shares) or not 0 <= self.shares[0] <= self.shares[-1] <= 1:
            raise InputError(f"patching.shares: expected ascending shares in [0, 1], found {[*self.shares]}")
        for field in ("success", "own"):
            if not 0 <= getattr(self, field) <= 1:
                raise InputError(f"patching.{field}: expected a share in [0, 1], found {getattr(self, field)}")


class Triggers(NamedTuple):
    """Triggers of one class, from different starts.

    Attributes:
      mask: `[triggers, h, w, 1]` in [0, 1], how much of a pixel a patch replaces.
      pattern: `[triggers, h, w, c]` in [0, 1], by what.
      perturbation: `[triggers, h, w, c]`, what is added.
    """

    mask: jax.Array
    pattern: jax.Array
    perturbation: jax.Array


class PatchingInfo(NamedTuple):
    """How it went.

    Attributes:
      loss: `[rounds, epochs, steps]`, of each step's batch.
      success: `[shares]`, how well the best trigger that was not taught works.
      own: `[shares]`, of the suspicious class's images, the share that keeps its answer.
      share: the smallest of the shares at which both are low enough, or the largest one; 0 for a class that does not
        stand out.
    """

    loss: jax.Array
    success: jax.Array
    own: jax.Array
    share: jax.Array


def patch_classes(
    network: Network,
    variables: Variables,
    images: Batch,
    suspicion: jax.Array,
    *,
    threshold: float,
    key: jax.Array,
    config: PatchingConfig,
    prepare: Callable[[jax.Array], jax.Array] = lambda images: images,
    augment: Callable[[jax.Array, jax.Array], jax.Array] = lambda images, key: images,
) -> tuple[Variables, PatchingInfo]:
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

    def one(now: Variables, drawn: Any) -> tuple[Variables, PatchingInfo]:
        suspect, key = drawn
        apply = partial(
            patch, network, trusted=trusted[images.labels], key=key, config=config, prepare=prepare, augment=augment
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
    config: PatchingConfig,
    prepare: Callable[[jax.Array], jax.Array] = lambda images: images,
    augment: Callable[[jax.Array, jax.Array], jax.Array] = lambda images, key: images,
) -> tuple[Variables, PatchingInfo]:
    """Fine-tunes on images, and on the same with a suspicious class's triggers, under their own labels. Pure; jits.

    Images of the suspicious class itself are left out: made from the network, they hold what the backdoor looks for,
    and would bring it back. They are asked afterwards instead. Everything runs in evaluation mode: running statistics
    stay those of real images, for which synthetic ones are no match. What is returned lies between the network
    as it came and the patched one, as near to the former as `config.success` and `config.own` allow: the way further
    costs what the class and its trigger have in common. Guarantee: touches no data but `images`.

    Args:
      network: the functions of the network.
      variables: the suspicious network's variables.
      images: `[n, h, w, c]` in [0, 1], usually synthetic, and what the network answers them with, `[n]`.
      suspect: the suspicious class; may be traced.
      trusted: bool `[n]`, which images may be taught; by default all. Those of the suspicious class never are.
      key: typed PRNG key.
      config: how.
      prepare: images in [0, 1] -> images as the network takes them.
      augment: `(images, key) -> images`, both in [0, 1], of the images that are fine-tuned on.

    Raises:
      InputError: if three times the images are less than a batch, or no triggers are asked for.
    """
    if not config.triggers:
        raise InputError("patching.triggers: expected at least 1, found 0")
    frozen = dataclasses.replace(network, apply_train=None)
    search = partial(search_triggers, network, images=images, suspect=suspect, config=config, prepare=prepare)
    taught = images.labels != suspect if trusted is None else (images.labels != suspect) & trusted
    # Some of them twice where others are left out.
    others = jnp.argsort(~taught, stable=True)
    others = others[jnp.arange(len(others)) % jnp.maximum(jnp.sum(taught), 1)]
    plain = Batch(images.images[others], images.labels[others])
    which = jnp.arange(len(others)) % config.triggers
    params, state = split(variables)

    def one_round(now: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        search_key, tune_key = jax.random.split(key)
        found = search({**state, "params": now}, key=search_key)
        stamped = jax.vmap(stamp)(plain.images, found.mask[which], found.pattern[which])
        perturbed = perturb(plain.images, found.perturbation[which])
        lesson = Batch(jnp.concatenate([plain.images, stamped, perturbed]), jnp.tile(plain.labels, 3))
        tuned, info = finetune(
            frozen,
            {**state, "params": now},
            lesson,
            key=tune_key,
            config=config.finetuning,
            prepare=lambda images, key: prepare(augment(images, key)),
        )
        return jax.tree.map(lambda new, old: new.astype(old.dtype), tuned["params"], now), info.loss

    round_key, held_out_key = jax.random.split(key)
    patched, loss = jax.lax.scan(one_round, params, jax.random.split(round_key, config.rounds))
    held_out = search(variables, key=held_out_key)

    def towards(share: jax.Array) -> Variables:
        mixed = jax.tree.map(lambda old, new: ((1 - share) * old + share * new).astype(old.dtype), params, patched)
        return {**state, "params": mixed}

    def asked(share: jax.Array) -> tuple[jax.Array, jax.Array]:
        return ask(network, towards(share), images, suspect, held_out, prepare=prepare)

    shares = jnp.array(config.shares, jnp.float32)
    success, own = jax.lax.map(asked, shares)
    enough = (success <= config.success) & (own <= config.own)
    share = jnp.where(jnp.any(enough), shares[jnp.argmax(enough)], shares[-1])
    return towards(share), PatchingInfo(loss, success, own, share)


def search_triggers(
    network: Network,
    variables: Variables,
    *,
    images: Batch,
    suspect: jax.Array | int,
    key: jax.Array,
    config: PatchingConfig,
    prepare: Callable[[jax.Array], jax.Array] = lambda images: images,
) -> Triggers:
    """`config.triggers` patches and perturbations of one class, each from its own start. Takes what `patch` takes."""

    def one(key: jax.Array) -> Triggers:
        first, second = jax.random.split(key)
        mask, pattern = invert_patch(
            network, variables, images, suspect, key=first, config=config.patch, prepare=prepare
        )
        added = invert_perturbation(
            network, variables, images, suspect, key=second, config=config.perturbation, prepare=prepare
        )
        return Triggers(mask, pattern, added)

    return jax.lax.map(one, jax.random.split(key, config.triggers))


def ask(
    network: Network,
    variables: Variables,
    images: Batch,
    suspect: jax.Array | int,
    triggers: Triggers,
    *,
    prepare: Callable[[jax.Array], jax.Array] = lambda images: images,
) -> tuple[jax.Array, jax.Array]:
    """How well the best of some triggers works, and how many of the suspicious class's images keep their answer."""

    def one(trigger: Triggers) -> jax.Array:
        stamped = trigger_success(network, variables, images, trigger.mask, trigger.pattern, suspect, prepare=prepare)
        perturbed = perturb(images.images, trigger.perturbation)
        added = changed_success(network, variables, images, perturbed, suspect, prepare=prepare)
        return jnp.maximum(stamped, added)

    own = images.labels == suspect
    kept = own & (jnp.argmax(network.apply(variables, prepare(images.images)), axis=-1) == suspect)
    return jnp.max(jax.lax.map(one, triggers)), jnp.sum(kept) / jnp.maximum(jnp.sum(own), 1)
