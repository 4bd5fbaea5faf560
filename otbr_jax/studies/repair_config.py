"""The settings of a repair: those of a victim, and those of the defence that repairs it."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from otbr_jax.data.clean import CleanConfig
from otbr_jax.defenses.defense import Defense
from otbr_jax.defenses.registry import DEFENSES, defense
from otbr_jax.errors import InputError
from otbr_jax.models.registry import ModelConfig
from otbr_jax.settings import declarations, field, from_dict, settings
from otbr_jax.steps.augment import augment
from otbr_jax.types import Augment, unchanged
from otbr_jax.victims.comes_back import ComesBackConfig
from otbr_jax.victims.config import VictimConfig


@settings("")
class AnyRepairConfig(VictimConfig):
    """Everything that decides a repair, but for the settings of the defence, which stand beside these.

    The network comes with a checkpoint (`model.checkpoint`), and `training` is then unused; or it is a victim trained
    for the purpose. A defence that takes clean images uses those of `clean`, and nothing else of `data`.
    """

    defense: str = field(default="otbr", choices=tuple(DEFENSES), doc="the method.")
    clean: CleanConfig = field(default=CleanConfig(), doc="the clean images of a defence that takes any.")
    comes_back: ComesBackConfig = field(
        default=ComesBackConfig(), doc="whether the backdoor comes back: a test of the repaired network."
    )
    repetition: int = field(
        default=0,
        at_least=0,
        below=2**32,
        doc="which of several runs of the same defence on the same network: each draws other random numbers, and "
        "other clean images of a training set.",
    )

    def check(self) -> None:
        """What a victim's and the defence's settings must fit together by."""
        super().check()
        own = self.way.Config
        if not isinstance(self, own):
            if type(self) is not AnyRepairConfig:
                raise InputError(f"defense: expected that of the other settings, {type(self).defense!r}, found another")
        elif hasattr(own, "check"):
            own.check(self)

    @property
    def way(self) -> Defense:
        """The defence."""
        return defense(self.defense)

    @property
    def clean_seed(self) -> int:
        """Which clean images are drawn, and held out: `seed`, or for another repetition than 0 one from both."""
        both = np.random.SeedSequence((self.seed, self.repetition))
        return int(both.generate_state(1)[0]) if self.repetition else self.seed

    @property
    def networks(self) -> tuple[str, ...]:
        """The stages that are networks and are measured; the last one holds the repaired network."""
        return self.way.networks(self)


def repair_config_type(name: str = "otbr") -> type[AnyRepairConfig]:
    """The class of the settings of a repair by the defence of that name; raises InputError if there is none."""
    return _made(name)


@functools.cache
def _made(name: str) -> type[AnyRepairConfig]:
    own = defense(name).Config
    body = {"__doc__": AnyRepairConfig.__doc__, "__module__": __name__, "defense": _named(name)}
    made = type(f"RepairConfig_{name}", (AnyRepairConfig, own), body | {"__annotations__": {"defense": str}})
    globals()[made.__name__] = settings("")(made)  # where pickle looks for it
    return made


def repair_config_types() -> list[type[AnyRepairConfig]]:
    """The classes of the settings of repairs, one for each defence."""
    return [repair_config_type(name) for name in DEFENSES]


def _named(name: str) -> Any:
    return field(default=name, choices=tuple(DEFENSES), doc="the method.")


def RepairConfig(*, defense: str = "otbr", **fields: Any) -> Any:  # noqa: N802  the settings, whichever class they are
    """The settings of a repair: fields of `VictimConfig`, `clean`, and those of the defence's `Config`.

    Raises:
      InputError: names what is wrong with them.
    """
    known = declarations(repair_config_type(defense))
    for name in fields:
        if name not in known:
            raise InputError(f"config.{name}: expected settings of {defense!r}, {sorted(known)}, found {name!r}")
    return repair_config_type(defense)(defense=defense, **fields)


def brought(config: Any, *, named: Callable[[str], bool]) -> Any:
    """The settings of a network that was brought, without what a configuration says of its own victim.

    Its data and its attack are another network's: measured with them, a backdoor would seem to be gone. Without a
    `model.name` the checkpoint tells which network it is.

    Args:
      config: the settings.
      named: whether a setting, or one of a group, was named beside the configuration, such as `model.checkpoint`.
    """
    if not (named("model.checkpoint") or ":" in config.model.name):
        return config
    data, attack, model = config.data, config.attack, config.model
    if not named("model.name"):
        sizes = ("width", "depth", "image_shape", "num_classes")
        given = {name: getattr(model, name) for name in sizes if named(f"model.{name}")}
        model = ModelConfig(name="", checkpoint=model.checkpoint, entry=model.entry, **given)
    return dataclasses.replace(
        config,
        model=model,
        data=data if named("data.name") or named("data.path") else dataclasses.replace(data, name="none"),
        attack=attack if named("attack") else dataclasses.replace(attack, name="none"),
    )


def repaired_by(defense: str, victim: VictimConfig, **fields: Any) -> Any:
    """The settings of a repair of the same victim by the defence of that name; `fields` as in `RepairConfig`."""
    return RepairConfig(
        defense=defense, **{name: getattr(victim, name) for name in declarations(VictimConfig)} | fields
    )


def repair_config(values: Mapping[str, Any]) -> Any:
    """The settings that a nested dictionary holds, of the defence that it names; raises InputError as `from_dict`."""
    return from_dict(config_type_of(values), values)


def config_type_of(values: Mapping[str, Any]) -> type[AnyRepairConfig]:
    """The class of the settings that a nested dictionary holds; raises InputError if it names no defence."""
    name = values.get("defense", "otbr")
    if not isinstance(name, str):
        raise InputError(f"defense: expected one of {[*DEFENSES]}, found {name!r}")
    return repair_config_type(name)


def clean_augmentation(config: AnyRepairConfig) -> Augment:
    """How the clean images are varied: `(images, key) -> images`."""
    padding, flip = config.clean.crop_padding, config.clean.flip
    if not (padding or flip):
        return unchanged  # the same as where there are no clean images, so that stages are shared
    return lambda images, key: augment(images, key=key, crop_padding=padding, flip=flip)


def plain_config(config: AnyRepairConfig) -> dict[str, Any]:
    """The settings as plain JSON values, as a row of results holds them: not where data lie, nor other attacks'."""
    values: dict[str, Any] = json.loads(json.dumps(_as_dict(config)))
    if config.way.data == "none":
        del values["clean"]
    else:
        values["clean"] |= {"path": "", "data_dir": ""}
    values["data"] |= {"path": "", "data_dir": "", "note": ""}
    values["attack"] = config.attack.settings()
    return values


def default_config(config: AnyRepairConfig) -> dict[str, Any]:
    """What `plain_config` says of the settings' defaults, with the same defence and attack."""
    attack = dataclasses.replace(type(config.attack)(), name=config.attack.name)
    return plain_config(dataclasses.replace(type(config)(), attack=attack))


def _as_dict(config: Any) -> Any:
    known = declarations(type(config))
    return {name: _as_dict(getattr(config, name)) for name in known} if known else config
