"""The settings of a repair."""

from __future__ import annotations

import dataclasses

from otbr_jax.defenses.otbr import OTBRConfig
from otbr_jax.errors import InputError
from otbr_jax.experiments.config import VictimConfig


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
