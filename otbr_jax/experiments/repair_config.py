"""The settings of a repair."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from otbr_jax.data.clean import CleanConfig
from otbr_jax.defenses.defense import Defense
from otbr_jax.defenses.registry import defense
from otbr_jax.errors import InputError
from otbr_jax.experiments.config import VictimConfig, from_dict


@dataclasses.dataclass(frozen=True)
class RepairConfig(VictimConfig):
    """Everything that decides a repair.

    The network comes with a checkpoint (`model.checkpoint`), and `training` is then unused; or it is a victim trained
    for the purpose. A defence that takes clean images uses those of `clean`, and nothing else of `data`.

    In a dictionary (config files, flags, rows of results) the groups of `method` stand beside the others.

    Attributes:
      defense: the method, a name of `defenses.registry.DEFENSES`.
      method: its settings, a `Defense.Config`; None for its defaults.
      clean: the clean images of a defence that takes any.
    """

    defense: str = "otbr"
    method: Any = None
    clean: CleanConfig = CleanConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method is None:
            object.__setattr__(self, "method", self.way.Config())
        if not isinstance(self.method, self.way.Config):
            raise InputError(
                f"method: expected {self.way.Config.__name__}, the settings of {self.defense!r}, "
                f"found {type(self.method).__name__}"
            )

    @property
    def way(self) -> Defense:
        """The defence."""
        return defense(self.defense)

    @property
    def networks(self) -> tuple[str, ...]:
        """The stages that are networks and are measured; the last one holds the repaired network."""
        return self.way.networks(self.method)


def repair_config(values: Mapping[str, Any]) -> RepairConfig:
    """The settings that a nested dictionary holds; raises InputError as `from_dict`."""
    name = values.get("defense", RepairConfig.defense)
    if not isinstance(name, str):
        raise InputError(f"config.defense: expected str, found {name!r}")
    own = {field.name for field in dataclasses.fields(RepairConfig)} - {"method"}
    groups = {field.name for field in dataclasses.fields(defense(name).Config)}
    method = from_dict(defense(name).Config, {key: values[key] for key in values if key in groups})
    rest = {key: value for key, value in values.items() if key in own or key not in groups}
    return dataclasses.replace(from_dict(RepairConfig, rest | {"method": None}), method=method)


def as_dict(config: RepairConfig) -> dict[str, Any]:
    """The settings as a nested dictionary, which `repair_config` reads."""
    values = dataclasses.asdict(config)
    return values | values.pop("method")


def changed(config: RepairConfig, **groups: Any) -> RepairConfig:
    """The settings with these fields, or groups of the method, replaced."""
    own = {field.name for field in dataclasses.fields(RepairConfig)}
    method = {name: value for name, value in groups.items() if name not in own}
    rest = {name: value for name, value in groups.items() if name in own}
    return dataclasses.replace(config, **rest | {"method": dataclasses.replace(config.method, **method)})
