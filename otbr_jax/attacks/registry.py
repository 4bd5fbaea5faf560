"""All attacks: every `Attack` in a module of this package is registered."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from otbr_jax import attacks
from otbr_jax.attacks.attack import LABEL_MODES, Assets, Attack, CleanNetwork, Trigger
from otbr_jax.errors import InputError
from otbr_jax.settings import field, settings, wrong


def _attacks() -> dict[str, Attack]:
    names = sorted(module.name for module in pkgutil.iter_modules(attacks.__path__))
    modules = [importlib.import_module(f"{attacks.__name__}.{name}") for name in names if name not in _NO_ATTACKS]
    return {value.name: value for module in modules for value in vars(module).values() if isinstance(value, Attack)}


_NO_ATTACKS = ("registry", "poisoning")  # they import this module

ATTACKS: Mapping[str, Attack] = _attacks()
"""All attacks by name."""


def _with_attack_settings(cls: type) -> type:
    """A class of settings with a group for each attack, which has the attack's name."""
    for attack in ATTACKS.values():
        cls.__annotations__[attack.name] = attack.Config
        setattr(cls, attack.name, field(default=attack.Config(), doc=f"settings of {attack.title}."))
    return cls


@settings("attack")
@_with_attack_settings
class AttackConfig:
    """The backdoor of a victim. Settings of the other attacks than `name` are not used."""

    name: str = field(
        default="badnets", choices=(*ATTACKS, "none"), doc="the attack, or `none` for a network without a backdoor."
    )
    target: int = field(default=0, at_least=0, doc="the attacker's class.")
    poisoning_ratio: float = field(
        default=0.1,
        above=0,
        at_most=1,
        doc="share of the training images that carry the trigger; of clean-label attacks at most the images of the "
        "target class.",
    )
    labels: str = field(
        default="published",
        choices=(*LABEL_MODES, "published"),
        doc="`all_to_one`: triggered images are labelled with the target; `all_to_all`: with the class after their "
        "own; `clean_label`: only images of the target class are triggered; `published`: as the attack was "
        "published.",
    )
    assets: str = field(
        default="",
        doc="a directory `attack` that `launch.train_victim` left, with the arrays of the trigger; empty to make them.",
    )

    def check(self) -> None:
        """Clean labels suit no attack that relabels images in training."""
        if self.name != "none" and self.label_mode == "clean_label" and ATTACKS[self.name].in_training is not None:
            raise wrong(self, "labels", f"labels that change, as {self.name} does while the network learns")

    @property
    def label_mode(self) -> str:
        """One of `LABEL_MODES`."""
        published = "all_to_one" if self.name == "none" else ATTACKS[self.name].labels
        return published if self.labels == "published" else self.labels

    @property
    def own(self) -> Any:
        """The settings of the attack `name` itself; None for `none`."""
        return getattr(self, self.name, None)

    def settings(self) -> dict[str, Any]:
        """What decides the attack, as plain values: not the settings of other attacks."""
        if self.name == "none":
            return {"name": "none"}
        return {
            "name": self.name,
            "target": self.target,
            "poisoning_ratio": self.poisoning_ratio,
            "labels": self.label_mode,
            **dataclasses.asdict(self.own),
        }


def trigger(config: AttackConfig, assets: Assets) -> Trigger:
    """The function that puts the attack's trigger on images.

    Raises InputError for the attack `none`; the function does if its images are not uint8 `[n, h, w, c]`.
    """
    if config.name == "none":
        raise InputError("attack.name: expected an attack with a trigger, found 'none'")
    return trigger_of(ATTACKS[config.name], config.own, assets)


def trigger_of(attack: Attack, own: Any, assets: Assets) -> Trigger:
    """As `trigger`, for an attack and its own settings."""

    def put(images: jax.Array, key: jax.Array) -> jax.Array:
        if images.dtype != jnp.uint8 or images.ndim != 4:
            raise InputError(f"images: expected uint8 [n, h, w, c], found {images.dtype} {list(images.shape)}")
        return attack.trigger(assets, images, key, own)

    return put


def poisoner(
    attack: Attack, own: Any, assets: Assets, clean: CleanNetwork | None = None
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """`(images uint8, labels, key) -> images`: the poisoned training images."""
    put = trigger_of(attack, own, assets)

    def change(images: jax.Array, labels: jax.Array, key: jax.Array) -> jax.Array:
        if attack.poison is None:
            return put(images, key)
        return attack.poison(assets, images, labels, key, own, clean)

    return change
