"""An attack by name, and how it gets into a training set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.attacks.badnets import badnets
from otbr_jax.errors import InputError

Trigger = Callable[[jax.Array], jax.Array]
"""uint8 images `[n, h, w, c]` -> the same images with the trigger."""


@dataclasses.dataclass(frozen=True)
class AttackConfig:
    """An all-to-one attack: triggered images are labelled with the target class.

    Attributes:
      name: a name of `TRIGGERS`, or `none` for a network without a backdoor.
      target: the attacker's class.
      poisoning_ratio: share of the training images that carry the trigger, in (0, 1].
      size: side of the trigger's square in pixels.
    """

    name: str = "badnets"
    target: int = 0
    poisoning_ratio: float = 0.1
    size: int = 3

    def __post_init__(self) -> None:
        if self.name not in (*TRIGGERS, "none"):
            raise InputError(f"attack.name: expected one of {[*TRIGGERS, 'none']}, found {self.name!r}")
        if not 0 < self.poisoning_ratio <= 1:
            raise InputError(f"attack.poisoning_ratio: expected a share in (0, 1], found {self.poisoning_ratio}")
        if self.target < 0:
            raise InputError(f"attack.target: expected a class, found {self.target}")


TRIGGERS: Mapping[str, Callable[[AttackConfig], Trigger]] = {
    "badnets": lambda config: lambda images: badnets(images, size=config.size),
}


class Poisoned(NamedTuple):
    """A poisoned training set: images uint8 `[n, h, w, c]`, labels int32 `[n]`, poisoned bool `[n]`."""

    images: jax.Array
    labels: jax.Array
    poisoned: jax.Array


def trigger(config: AttackConfig) -> Trigger:
    """The function that puts the attack's trigger on images; raises InputError for the attack `none`."""
    if config.name == "none":
        raise InputError("attack.name: expected an attack with a trigger, found 'none'")
    return TRIGGERS[config.name](config)


def poison(images: jax.Array, labels: jax.Array, *, key: jax.Array, config: AttackConfig) -> Poisoned:
    """Puts the trigger on randomly chosen training images and labels them with the target class.

    Args:
      images: uint8 `[n, h, w, c]`.
      labels: int32 `[n]`.
      key: typed PRNG key: which images are chosen.
      config: the attack; `none` poisons nothing.

    Raises:
      InputError: if the ratio leaves no image poisoned.
    """
    if config.name == "none":
        return Poisoned(images, labels, jnp.zeros(labels.shape, bool))
    count = int(config.poisoning_ratio * len(labels))
    if count == 0:
        raise InputError(
            f"attack.poisoning_ratio: expected at least one poisoned image, found {config.poisoning_ratio} "
            f"of {len(labels)} images"
        )
    chosen = jnp.zeros(labels.shape, bool).at[jax.random.permutation(key, len(labels))[:count]].set(True)
    return Poisoned(
        jnp.where(chosen[:, None, None, None], trigger(config)(images), images),
        jnp.where(chosen, config.target, labels),
        chosen,
    )
