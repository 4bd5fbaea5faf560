"""Teaching a network that the trigger found in it means nothing, on images that were made from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.errors import InputError
from otbr_jax.finetuning import FinetuningConfig, FinetuningInfo, finetune
from otbr_jax.inversion import InversionConfig, invert_trigger, stamp
from otbr_jax.types import Batch, Network, Variables, split


@dataclasses.dataclass(frozen=True)
class PatchingConfig:
    """How a network is patched.

    Attributes:
      triggers: how many triggers of the suspicious class are searched, from different starts; 0 for no patching.
      inversion: how.
      finetuning: activeness-aware fine-tuning on the images, and on the same with one of the triggers.
      crop_padding: pixels by which images are moved at random, at most.
    """

    triggers: int = 0
    inversion: InversionConfig = InversionConfig(steps=60)
    finetuning: FinetuningConfig = FinetuningConfig(epochs=10, batch_size=50, learning_rate=0.001, schedule="cosine")
    crop_padding: int = 1

    def __post_init__(self) -> None:
        for field in ("triggers", "crop_padding"):
            if getattr(self, field) < 0:
                raise InputError(f"patching.{field}: expected a number from 0, found {getattr(self, field)}")


class PatchingInfo(NamedTuple):
    """How it went.

    Attributes:
      mask: `[triggers, h, w, 1]` in [0, 1], of the triggers that were taught.
      pattern: `[triggers, h, w, c]` in [0, 1].
      finetuning: of each step.
    """

    mask: jax.Array
    pattern: jax.Array
    finetuning: FinetuningInfo


def patch(
    network: Network,
    variables: Variables,
    images: Batch,
    suspect: jax.Array | int,
    *,
    key: jax.Array,
    config: PatchingConfig,
    prepare: Callable[[jax.Array], jax.Array] = lambda images: images,
    augment: Callable[[jax.Array, jax.Array], jax.Array] = lambda images, key: images,
    place: Callable[[Batch], Batch] = lambda batch: batch,
) -> tuple[Variables, PatchingInfo]:
    """Fine-tunes on images, and on the same with a suspicious class's trigger under their own labels. Pure; jits.

    The triggers are searched on `variables`, so that they are what pruning and fusion have left. Images of the
    suspicious class stay without. Running statistics stay those of real images, which `variables` holds: synthetic and
    stamped ones are no match for them. Guarantee: touches no data but `images`.

    Args:
      network: the functions of the network.
      variables: its variables, usually after fusion.
      images: `[n, h, w, c]` in [0, 1], usually synthetic, and what the original network answers them with, `[n]`.
      suspect: the suspicious class; may be traced.
      key: typed PRNG key.
      config: how.
      prepare: images in [0, 1] -> images as the network takes them.
      augment: `(images, key) -> images`, both in [0, 1], of the images that are fine-tuned on.
      place: says where a batch lies on the devices.

    Raises:
      InputError: if there are fewer images than half a batch, or no triggers are asked for.
    """
    if not config.triggers:
        raise InputError("patching.triggers: expected at least 1, found 0")
    search_key, tune_key = jax.random.split(key)
    keys = jax.random.split(search_key, config.triggers)

    def search(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = invert_trigger(network, variables, images, suspect, key=key, config=config.inversion, prepare=prepare)
        return found.mask, found.pattern

    masks, patterns = jax.lax.map(search, keys)
    which = jnp.arange(len(images.labels)) % config.triggers
    stamped = jax.vmap(stamp)(images.images, masks[which], patterns[which])
    own = (images.labels == suspect)[:, None, None, None]
    taught = Batch(
        jnp.concatenate([images.images, jnp.where(own, images.images, stamped)]),
        jnp.concatenate([images.labels, images.labels]),
    )
    tuned, info = finetune(
        network,
        variables,
        taught,
        key=tune_key,
        config=config.finetuning,
        prepare=lambda images, key: prepare(augment(images, key)),
        place=place,
    )
    _, state = split(variables)
    return {**tuned, **state}, PatchingInfo(masks, patterns, info)
