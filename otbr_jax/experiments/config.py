"""The settings of a victim, and how settings come out of nested dictionaries (config files, flags, JSON)."""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from otbr_jax.attacks.registry import AttackConfig
from otbr_jax.data.sources import DataConfig
from otbr_jax.errors import InputError
from otbr_jax.experiments.training import TrainingConfig
from otbr_jax.models.registry import ModelConfig

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class VictimConfig:
    """Everything that decides a victim.

    Attributes:
      seed: of every random choice; each stage gets a key of its own from it.
      model: the network.
      data: images to train and to measure with.
      attack: the backdoor, and the trigger that ASR is measured with.
      training: how the victim is trained.
    """

    seed: int = 0
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    attack: AttackConfig = AttackConfig()
    training: TrainingConfig = TrainingConfig()

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed: expected an integer in [0, 2**32), found {self.seed}")
        if self.attack.target >= self.model.num_classes:
            raise InputError(
                f"attack.target: expected a class in 0..{self.model.num_classes - 1}, found {self.attack.target}"
            )


def from_dict(config_type: type[T], values: Mapping[str, Any], *, name: str = "config") -> T:
    """Builds a config dataclass from a nested mapping; fields that are left out keep their defaults.

    Raises:
      InputError: names an unknown field (and the nearest known one), or a value of another type.
    """
    hints = typing.get_type_hints(config_type)
    fields = {}
    for field, value in values.items():
        if field not in hints:
            near = difflib.get_close_matches(field, hints, n=1)
            hint = f"; did you mean {name}.{near[0]}?" if near else f"; expected one of {sorted(hints)}"
            raise InputError(f"{name}.{field}: unknown config field{hint}")
        fields[field] = _value(hints[field], value, f"{name}.{field}")
    try:
        return config_type(**fields)
    except InputError as error:
        # Groups of one kind, such as suspicion.patch and patching.patch, only know what kind they are.
        named = re.match(r"(\w+)\.(.+)", str(error), flags=re.DOTALL)
        if named is None or name == "config" or named[1] in name.split("."):
            raise
        raise InputError(f"{name.removeprefix('config.')}.{named[2]}") from None


def _value(hint: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise InputError(f"{name}: expected a group of settings, found {value!r}")
        return from_dict(typing.cast(type, hint), value, name=name)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (tuple, list)):
            raise InputError(f"{name}: expected a list of values, found {value!r}")
        (item, *_) = typing.get_args(hint)
        return tuple(_value(item, part, name) for part in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise InputError(f"{name}: expected {hint.__name__}, found {value!r}")
    return value
