"""How a trigger gets into a training set: which images, which labels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.attacks.attack import Trigger, goals
from otbr_jax.attacks.registry import AttackConfig
from otbr_jax.errors import InputError

log = logging.getLogger(__name__)

_CHUNK = 1024  # images that get a trigger at once, since a generator's activations are large


class Poisoned(NamedTuple):
    """A poisoned training set: images uint8 `[n, h, w, c]`, labels int32 `[n]`, poisoned bool `[n]`."""

    images: jax.Array
    labels: jax.Array
    poisoned: jax.Array


def apply_trigger(trigger: Trigger, images: jax.Array, *, key: jax.Array) -> jax.Array:
    """Puts a trigger on uint8 images `[n, h, w, c]` of any number, a chunk at a time, each with a key of its own."""
    return _in_chunks(trigger, (images,), key=key)


def _in_chunks(function: Callable[..., jax.Array], arrays: tuple[jax.Array, ...], *, key: jax.Array) -> jax.Array:
    """`function(*arrays, key)` of rows of arrays, a chunk at a time."""
    function, count = jax.jit(function), len(arrays[0])
    parts = []
    for start in range(0, count, _CHUNK):
        chunks = [array[start : start + _CHUNK] for array in arrays]
        size = len(chunks[0])
        if start:  # filled up, so that every chunk runs the same program
            pairs = zip(chunks, arrays, strict=True)
            chunks = [jnp.concatenate([chunk, array[: _CHUNK - size]]) for chunk, array in pairs]
        parts.append(function(*chunks, jax.random.fold_in(key, start))[:size])
    return jnp.concatenate(parts)


def poisoned_count(count: int, config: AttackConfig) -> int:
    """How many of `count` images are poisoned, the ratio rounded down; raises InputError if that is none."""
    poisoned = int(config.poisoning_ratio * count + 1e-9)
    if poisoned == 0:
        raise InputError(
            f"attack.poisoning_ratio: expected at least one poisoned image, found {config.poisoning_ratio} "
            f"of {count} images"
        )
    return poisoned


def check_possible(labels: jax.Array | np.ndarray, config: AttackConfig) -> None:
    """Raises InputError if the attack would poison none of the training images with these labels."""
    poisoned_count(len(labels), config)
    if config.label_mode == "clean_label" and not (labels == config.target).any():
        raise InputError(f"attack.target: expected a class with training images, found {config.target} with none")


def choose(labels: jax.Array, *, key: jax.Array, config: AttackConfig) -> jax.Array:
    """Positions int `[m]` of the images that are poisoned, a share `poisoning_ratio` of all, at random.

    A clean-label attack takes them from the target class, and if that holds fewer, all of it (with a warning).

    Raises:
      InputError: if the ratio leaves no image poisoned, or the target class has none.
    """
    check_possible(labels, config)
    count = poisoned_count(len(labels), config)
    order = jax.random.permutation(key, len(labels))
    if config.label_mode == "clean_label":
        order = order[labels[order] == config.target]
        if len(order) < count:
            log.warning(
                "attack.poisoning_ratio: %g of %d images is %d, class %d has %d; all of them are poisoned",
                *(config.poisoning_ratio, len(labels), count, config.target, len(order)),
            )
    return order[:count]


def poison(
    images: jax.Array,
    labels: jax.Array,
    trigger: Trigger,
    *,
    key: jax.Array,
    config: AttackConfig,
    num_classes: int,
    change: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None,
) -> Poisoned:
    """Puts the trigger on randomly chosen training images and labels them as the attacker wants.

    Args:
      images: uint8 `[n, h, w, c]`.
      labels: int32 `[n]`.
      trigger: the attack's, from `registry.trigger`.
      key: typed PRNG key: which images are chosen.
      config: the attack.
      num_classes: number of classes.
      change: `(images, labels, key) -> images`, what poisoned images become, from `registry.poisoner`; None for just
        the trigger.

    Raises:
      InputError: if the ratio leaves no image poisoned.
    """
    chosen = choose(labels, key=key, config=config)
    new_labels = labels if config.label_mode == "clean_label" else goals(
        labels, mode=config.label_mode, target=config.target, num_classes=num_classes
    )  # fmt: skip
    if change is None:
        changed = apply_trigger(trigger, images[chosen], key=key)
    else:
        changed = _in_chunks(change, (images[chosen], labels[chosen]), key=key)
    return Poisoned(
        images.at[chosen].set(changed),
        labels.at[chosen].set(new_labels[chosen]),
        jnp.zeros(labels.shape, bool).at[chosen].set(True),
    )
