"""Attacks by name: one line per attack, so that a new one is added in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from otbr_jax.attacks import badnets, blended, input_aware, lf, sig, ssba, trojan, wanet
from otbr_jax.attacks.attack import LABEL_MODES, Assets, Attack, Trigger
from otbr_jax.errors import InputError

ATTACKS: Mapping[str, Attack] = {
    "badnets": badnets.ATTACK,
    "blended": blended.ATTACK,
    "sig": sig.ATTACK,
    "lf": lf.ATTACK,
    "ssba": ssba.ATTACK,
    "wanet": wanet.ATTACK,
    "input_aware": input_aware.ATTACK,
    "trojan": trojan.ATTACK,
}


@dataclasses.dataclass(frozen=True)
class AttackConfig:
    """The backdoor of a victim. Settings of the other attacks than `name` are not used.

    Attributes:
      name: a name of `ATTACKS`, or `none` for a network without a backdoor.
      target: the attacker's class.
      poisoning_ratio: share of the training images that carry the trigger, in (0, 1]; of clean-label attacks at most
        the images of the target class.
      labels: `all_to_one`: triggered images are labelled with the target; `all_to_all`: with the class after their
        own; `clean_label`: only images of the target class are triggered; `published`: as the attack was published.
      assets: a directory `attack` that `launch.train_victim` left, with the arrays of the trigger; empty to make them.
      badnets: and the following: the attacks' own settings.
    """

    name: str = "badnets"
    target: int = 0
    poisoning_ratio: float = 0.1
    labels: str = "published"
    assets: str = ""
    badnets: badnets.BadNetsConfig = badnets.BadNetsConfig()
    blended: blended.BlendedConfig = blended.BlendedConfig()
    sig: sig.SIGConfig = sig.SIGConfig()
    lf: lf.LFConfig = lf.LFConfig()
    ssba: ssba.SSBAConfig = ssba.SSBAConfig()
    wanet: wanet.WaNetConfig = wanet.WaNetConfig()
    input_aware: input_aware.InputAwareConfig = input_aware.InputAwareConfig()
    trojan: trojan.TrojanConfig = trojan.TrojanConfig()

    def __post_init__(self) -> None:
        if self.name not in (*ATTACKS, "none"):
            raise InputError(f"attack.name: expected one of {[*ATTACKS, 'none']}, found {self.name!r}")
        if not 0 < self.poisoning_ratio <= 1:
            raise InputError(f"attack.poisoning_ratio: expected a share in (0, 1], found {self.poisoning_ratio}")
        if self.target < 0:
            raise InputError(f"attack.target: expected a class, found {self.target}")
        if self.labels not in (*LABEL_MODES, "published"):
            raise InputError(f"attack.labels: expected one of {[*LABEL_MODES, 'published']}, found {self.labels!r}")
        if self.name != "none" and self.label_mode == "clean_label" and ATTACKS[self.name].in_training is not None:
            raise InputError(f"attack.labels: {self.name} changes labels while the network learns; found 'clean_label'")

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
    attack = ATTACKS[config.name]

    def put(images: jax.Array, key: jax.Array) -> jax.Array:
        if images.dtype != jnp.uint8 or images.ndim != 4:
            raise InputError(f"images: expected uint8 [n, h, w, c], found {images.dtype} {list(images.shape)}")
        return attack.trigger(assets, images, key, config.own)

    return put
