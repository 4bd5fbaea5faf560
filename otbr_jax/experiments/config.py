"""The settings of one run, and how they come out of nested dictionaries (config files, flags, JSON)."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from otbr_jax.attacks.registry import AttackConfig
from otbr_jax.data.sources import DataConfig
from otbr_jax.defenses.otbr import OTBRConfig
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


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """The grid of settings that the report shows beside the chosen one; empty for none.

    Attributes:
      gamma: shares of neurons to prune, each in [0, 1].
      lam: the paper's lambdas, each in [0, 1]. The chosen one is measured too if it is not among them.
    """

    gamma: tuple[float, ...] = (0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
    lam: tuple[float, ...] = (0.25, 0.5, 0.625, 0.75, 1.0)

    def __post_init__(self) -> None:
        for field in ("gamma", "lam"):
            for value in getattr(self, field):
                if not 0 <= value <= 1:
                    raise InputError(f"sweep.{field}: expected fractions in [0, 1], found {value}")


@dataclasses.dataclass(frozen=True)
class RepairConfig(VictimConfig):
    """Everything that decides a run of `pipeline.repair`.

    The network comes with a checkpoint (`model.checkpoint`), and `training` is then unused; or it is a victim trained
    for the purpose. The repair itself uses no `data`.

    Attributes:
      defense: the method, `otbr`.
      otbr: the settings of the method.
      sweep: settings that the report shows beside the chosen one.
    """

    defense: str = "otbr"
    otbr: OTBRConfig = OTBRConfig()
    sweep: SweepConfig = SweepConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.defense != "otbr":
            raise InputError(f"defense: expected 'otbr', found {self.defense!r}")

    @property
    def lams(self) -> tuple[float, ...]:
        """The lambdas of the grid, the chosen one among them, in order."""
        return tuple(sorted({*self.sweep.lam, self.otbr.fusion.lam})) if self.sweep.gamma and self.sweep.lam else ()


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
    return config_type(**fields)


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
