"""Attacks by name: one line per attack, so that a new one is added in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from otbr_jax.attacks import (
    adaptive,
    badnets,
    blended,
    bpp,
    ctrl,
    ftrojan,
    input_aware,
    label_consistent,
    lf,
    lira,
    sig,
    ssba,
    trojan,
    wanet,
)
from otbr_jax.attacks.attack import LABEL_MODES, Assets, Attack, CleanNetwork, Trigger
from otbr_jax.errors import InputError
from otbr_jax.settings import field, settings, wrong

ATTACKS: Mapping[str, Attack] = {
    "badnets": badnets.ATTACK,
    "blended": blended.ATTACK,
    "sig": sig.ATTACK,
    "lf": lf.ATTACK,
    "ssba": ssba.ATTACK,
    "wanet": wanet.ATTACK,
    "input_aware": input_aware.ATTACK,
    "trojan": trojan.ATTACK,
    "label_consistent": label_consistent.ATTACK,
    "ftrojan": ftrojan.ATTACK,
    "bpp": bpp.ATTACK,
    "ctrl": ctrl.ATTACK,
    "lira": lira.ATTACK,
    "adaptive_pictures": adaptive.PICTURES,
    "adaptive_reach": adaptive.REACH,
    "adaptive_channels": adaptive.CHANNELS,
}


@settings("attack")
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
    badnets: badnets.BadNetsConfig = field(default=badnets.BadNetsConfig(), doc="settings of BadNets.")
    blended: blended.BlendedConfig = field(default=blended.BlendedConfig(), doc="settings of Blended.")
    sig: sig.SIGConfig = field(default=sig.SIGConfig(), doc="settings of SIG.")
    lf: lf.LFConfig = field(default=lf.LFConfig(), doc="settings of LF.")
    ssba: ssba.SSBAConfig = field(default=ssba.SSBAConfig(), doc="settings of SSBA.")
    wanet: wanet.WaNetConfig = field(default=wanet.WaNetConfig(), doc="settings of WaNet.")
    input_aware: input_aware.InputAwareConfig = field(
        default=input_aware.InputAwareConfig(), doc="settings of Input-aware."
    )
    trojan: trojan.TrojanConfig = field(default=trojan.TrojanConfig(), doc="settings of Trojan.")
    label_consistent: label_consistent.LabelConsistentConfig = field(
        default=label_consistent.LabelConsistentConfig(), doc="settings of Label-consistent."
    )
    ftrojan: ftrojan.FTrojanConfig = field(default=ftrojan.FTrojanConfig(), doc="settings of FTrojan.")
    bpp: bpp.BppConfig = field(default=bpp.BppConfig(), doc="settings of BppAttack.")
    ctrl: ctrl.CTRLConfig = field(default=ctrl.CTRLConfig(), doc="settings of CTRL.")
    lira: lira.LIRAConfig = field(default=lira.LIRAConfig(), doc="settings of LIRA.")
    adaptive_pictures: adaptive.PicturesAwareConfig = field(
        default=adaptive.PicturesAwareConfig(), doc="settings of the backdoor that procedural pictures do not show."
    )
    adaptive_reach: adaptive.ReachAwareConfig = field(
        default=adaptive.ReachAwareConfig(), doc="settings of the backdoor among decoys."
    )
    adaptive_channels: adaptive.ChannelsAwareConfig = field(
        default=adaptive.ChannelsAwareConfig(), doc="settings of the backdoor of several triggers."
    )

    def check(self) -> None:
        """Labels that stay as they are suit no attack that changes them in training."""
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
    attack = ATTACKS[config.name]

    def put(images: jax.Array, key: jax.Array) -> jax.Array:
        if images.dtype != jnp.uint8 or images.ndim != 4:
            raise InputError(f"images: expected uint8 [n, h, w, c], found {images.dtype} {list(images.shape)}")
        return attack.trigger(assets, images, key, config.own)

    return put


def poisoner(
    config: AttackConfig, assets: Assets, clean: CleanNetwork | None = None
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """`(images uint8, labels, key) -> images`: what training images become; with the trigger, and more if need be."""
    put, attack = trigger(config, assets), ATTACKS[config.name]

    def change(images: jax.Array, labels: jax.Array, key: jax.Array) -> jax.Array:
        if attack.poison is None:
            return put(images, key)
        return attack.poison(assets, images, labels, key, config.own, clean)

    return change
