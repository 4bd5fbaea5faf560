"""The settings of a repair."""

from __future__ import annotations

from otbr_jax.data.clean import CleanConfig
from otbr_jax.defenses.otbr import OTBRConfig
from otbr_jax.defenses.tsbd import TSBDConfig
from otbr_jax.distillation import DistillationConfig
from otbr_jax.experiments.config import VictimConfig
from otbr_jax.patching import PatchingConfig
from otbr_jax.selection import SelectionConfig, candidates
from otbr_jax.settings import field, settings, wrong
from otbr_jax.suspicion import SuspicionConfig

DEFENSES = ("otbr", "tsbd")


@settings("sweep")
class SweepConfig:
    """The grid of settings that the report shows beside the chosen one; empty for none."""

    gamma: tuple[float, ...] = field(
        default=(0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3), at_least=0, at_most=1, doc="shares of neurons to prune."
    )
    lam: tuple[float, ...] = field(
        default=(0.25, 0.5, 0.625, 0.75, 1.0),
        at_least=0,
        at_most=1,
        doc="the paper's lambdas. The chosen one is measured too if it is not among them.",
    )
    n: tuple[float, ...] = field(default=(), at_least=0, at_most=1, doc="TSBD's shares of neurons.")
    m: tuple[float, ...] = field(
        default=(),
        at_least=0,
        at_most=1,
        doc="TSBD's shares of their weights; empty for `tsbd.m`. Every pair (n, m) costs a fine-tuning.",
    )

    def check(self) -> None:
        """Shares of weights come with shares of neurons."""
        if self.m and not self.n:
            raise wrong(self, "n", f"shares of neurons beside sweep.m {[*self.m]}", found="none")


@settings("")
class RepairConfig(VictimConfig):
    """Everything that decides a run of `pipeline.repair`.

    The network comes with a checkpoint (`model.checkpoint`), and `training` is then unused; or it is a victim trained
    for the purpose. OTBR uses no image; TSBD uses `clean`, and nothing else of `data`.
    """

    defense: str = field(default="otbr", choices=DEFENSES, doc="the method.")
    otbr: OTBRConfig = field(default=OTBRConfig(), doc="the settings of OTBR.")
    suspicion: SuspicionConfig = field(
        default=SuspicionConfig(),
        doc="whether anything is repaired at all, judged by images made from the network or, for TSBD, by the clean "
        "ones; and OTBR's gamma and lambda.",
    )
    distillation: DistillationConfig = field(
        default=DistillationConfig(), doc="how the suspicious network teaches OTBR's fused one."
    )
    patching: PatchingConfig = field(
        default=PatchingConfig(), doc="how a network in which a class stands out is patched, instead of fused."
    )
    tsbd: TSBDConfig = field(default=TSBDConfig(), doc="the settings of TSBD.")
    clean: CleanConfig = field(default=CleanConfig(), doc="TSBD's clean images.")
    selection: SelectionConfig = field(default=SelectionConfig(), doc="how TSBD's n and m are chosen with them.")
    sweep: SweepConfig = field(default=SweepConfig(), doc="settings that the report shows beside the chosen one.")

    def check(self) -> None:
        """Patching and distillation are OTBR's, exclude each other, and have as many images as they ask for."""
        super().check()
        patches, made = bool(self.patching.triggers), self.suspicion.synthetic.images
        if patches and not self.suspicion.gamma:
            raise wrong(self, "suspicion.gamma", "settings to judge beside patching.triggers", found="none")
        if patches and self.defense != "otbr":
            raise wrong(self, "patching.triggers", f"0, since only otbr patches and defense is {self.defense!r}")
        if self.distills and (patches or self.defense != "otbr"):
            other = "patching" if patches else self.defense
            expected = f"'none', since only otbr's fused network is taught and {other} returns another"
            raise wrong(self, "distillation.targets", expected)
        if self.distills and self.distillation.finetuning.batch_size > made:
            expected = f"at most {made}, suspicion.synthetic.images"
            raise wrong(self, "distillation.finetuning.batch_size", expected)
        if patches and self.patching.finetuning.batch_size > 3 * made:
            expected = f"at most {3 * made}, three times suspicion.synthetic.images"
            raise wrong(self, "patching.finetuning.batch_size", expected)
        if patches and self.patching.recoveries and self.patching.recovered > made:
            raise wrong(self, "patching.recovered", f"at most {made}, suspicion.synthetic.images")

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
