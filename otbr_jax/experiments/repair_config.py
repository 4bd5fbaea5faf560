"""The settings of a repair."""

from __future__ import annotations

import dataclasses

from otbr_jax.data.clean import CleanConfig
from otbr_jax.defenses.otbr import OTBRConfig
from otbr_jax.defenses.tsbd import TSBDConfig
from otbr_jax.distillation import DistillationConfig
from otbr_jax.errors import InputError
from otbr_jax.experiments.config import VictimConfig
from otbr_jax.patching import PatchingConfig
from otbr_jax.selection import SelectionConfig, candidates
from otbr_jax.suspicion import SuspicionConfig

DEFENSES = ("otbr", "tsbd")


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """The grid of settings that the report shows beside the chosen one; empty for none.

    Attributes:
      gamma: shares of neurons to prune, each in [0, 1].
      lam: the paper's lambdas, each in [0, 1]. The chosen one is measured too if it is not among them.
      n: TSBD's shares of neurons, each in [0, 1].
      m: TSBD's shares of their weights, each in [0, 1]; empty for `tsbd.m`. Every pair (n, m) costs a fine-tuning.
    """

    gamma: tuple[float, ...] = (0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
    lam: tuple[float, ...] = (0.25, 0.5, 0.625, 0.75, 1.0)
    n: tuple[float, ...] = ()
    m: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for field in ("gamma", "lam", "n", "m"):
            for value in getattr(self, field):
                if not 0 <= value <= 1:
                    raise InputError(f"sweep.{field}: expected fractions in [0, 1], found {value}")
        if self.m and not self.n:
            raise InputError(f"sweep.n: expected shares of neurons beside sweep.m {[*self.m]}, found none")


@dataclasses.dataclass(frozen=True)
class RepairConfig(VictimConfig):
    """Everything that decides a run of `pipeline.repair`.

    The network comes with a checkpoint (`model.checkpoint`), and `training` is then unused; or it is a victim trained
    for the purpose. OTBR uses no image; TSBD uses `clean`, and nothing else of `data`.

    Attributes:
      defense: the method, a name of `DEFENSES`.
      otbr: the settings of OTBR.
      suspicion: whether anything is repaired at all, judged by images made from the network or, for TSBD, by the clean
        ones; and OTBR's gamma and lambda.
      distillation: how the suspicious network teaches OTBR's fused one.
      patching: how a network in which a class stands out is patched, instead of fused.
      tsbd: the settings of TSBD.
      clean: TSBD's clean images.
      selection: how TSBD's n and m are chosen with them.
      sweep: settings that the report shows beside the chosen one.
    """

    defense: str = "otbr"
    otbr: OTBRConfig = OTBRConfig()
    suspicion: SuspicionConfig = SuspicionConfig()
    distillation: DistillationConfig = DistillationConfig()
    patching: PatchingConfig = PatchingConfig()
    tsbd: TSBDConfig = TSBDConfig()
    clean: CleanConfig = CleanConfig()
    selection: SelectionConfig = SelectionConfig()
    sweep: SweepConfig = SweepConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.defense not in DEFENSES:
            raise InputError(f"defense: expected one of {[*DEFENSES]}, found {self.defense!r}")
        if self.patching.triggers and not self.suspicion.gamma:
            raise InputError("suspicion.gamma: expected settings to judge beside patching.triggers, found none")
        if self.patching.triggers and self.defense != "otbr":
            raise InputError(
                f"patching.triggers: expected 0, since only otbr patches and defense is {self.defense!r}, found "
                f"{self.patching.triggers}"
            )
        if self.distills and (self.patching.triggers or self.defense != "otbr"):
            raise InputError(
                f"distillation.targets: expected 'none', since only otbr's fused network is taught and "
                f"{'patching' if self.patching.triggers else self.defense} returns another, "
                f"found {self.distillation.targets!r}"
            )
        made, size = self.suspicion.synthetic.images, self.distillation.finetuning.batch_size
        if self.distills and size > made:
            raise InputError(
                f"distillation.finetuning.batch_size: expected at most {made}, suspicion.synthetic.images, found {size}"
            )
        taught, size = 3 * self.suspicion.synthetic.images, self.patching.finetuning.batch_size
        if self.patching.triggers and size > taught:
            raise InputError(
                f"patching.finetuning.batch_size: expected at most {taught}, three times suspicion.synthetic.images, "
                f"found {size}"
            )
        recovered = self.patching.recovered
        if self.patching.triggers and self.patching.recoveries and recovered > made:
            raise InputError(
                f"patching.recovered: expected at most {made}, suspicion.synthetic.images, found {recovered}"
            )

    @property
    def layers(self) -> str:
        """Which layers the method repairs; see `choose_layers`."""
        return self.otbr.layers if self.defense == "otbr" else self.tsbd.layers

    @property
    def distills(self) -> bool:
        """Whether the suspicious network teaches the fused one."""
        return self.distillation.targets != "none"

    @property
    def swept(self) -> str:
        """The network that every setting of the sweep is measured of, a name of `networks`."""
        if self.defense == "tsbd":
            return "finetuned"
        return "distilled" if self.distills else "fused"

    def batch_sizes(self) -> dict[str, int]:
        """The batch sizes of the method, which devices share, by their names."""
        if self.defense == "otbr":
            # Patching's and distillation's few images are not worth splitting: every device has all of them.
            return {"otbr.unlearning.batch_size": self.otbr.unlearning.batch_size}
        return {
            f"tsbd.{stage}.batch_size": getattr(self.tsbd, stage).batch_size for stage in ("unlearning", "finetuning")
        }

    def pairs(self, grid: SelectionConfig | SweepConfig) -> tuple[tuple[float, float], ...]:
        """TSBD's settings (n, m) of a grid, `selection` or `sweep`, in order of strength."""
        return candidates(grid.n, self.tsbd.shares(grid.m))

    @property
    def networks(self) -> tuple[str, ...]:
        """The stages that are networks and are measured; the last one holds the repaired network."""
        if self.defense == "tsbd":
            return ("victim", "unlearned", "reinitialized", "finetuned")
        more = {"distilled": self.distills, "patched": bool(self.patching.triggers)}
        return ("victim", "unlearned", "pruned", "fused", *(name for name, wanted in more.items() if wanted))

    @property
    def lams(self) -> tuple[float, ...]:
        """The lambdas of the grid, the chosen one among them, in order."""
        return tuple(sorted({*self.sweep.lam, self.otbr.fusion.lam})) if self.sweep.gamma and self.sweep.lam else ()
