"""Detectors on networks whose backdoors are known: one row for each victim and detector, and ROC curves of them all."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from otbr_jax.data.clean import CleanConfig
from otbr_jax.detectors.detector import Detector, conclude
from otbr_jax.detectors.registry import detector
from otbr_jax.errors import InputError
from otbr_jax.files import write_figure
from otbr_jax.metrics import rounded
from otbr_jax.report.detector_tables import curves
from otbr_jax.report.plots import roc_curves
from otbr_jax.report.rows import Row
from otbr_jax.runs.numerics import default_numerics
from otbr_jax.runs.run import Run
from otbr_jax.runs.session import Session, open_session
from otbr_jax.settings import declarations
from otbr_jax.studies.bench import Bench, Cell
from otbr_jax.studies.repair import measure_networks
from otbr_jax.studies.repair_config import RepairConfig, repair_config
from otbr_jax.types import Batch
from otbr_jax.victims.config import VictimConfig
from otbr_jax.victims.victims import check_trainable, open_victim, test_set


def clean_inputs(session: Session, detector: Detector, config: CleanConfig, *, seed: int) -> dict[str, Batch]:
    """The inputs of a detector's plan beside the network: none, or the clean images that `config` names.

    Args:
      session: of the run.
      detector: the detector.
      config: where the clean images come from.
      seed: which images of a training set.

    Raises:
      InputError: if clean images are needed and there are none, or they do not fit the network.
    """
    if detector.data == "none":
        return {}
    return {"clean": Batch(*map(jnp.asarray, session.clean(config, seed=seed).images))}


@dataclasses.dataclass(frozen=True)
class DetectorCell(Cell):
    """One row of a bench: a detector runs on a victim, or on a clean network, that is trained for it.

    Attributes:
      config: the victim's settings, and which clean images a defender has; other settings of a repair have no effect.
      detector: its name.
      own: its settings; None for the defaults.
    """

    detector: str = ""
    own: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        config = self.chosen.Config() if self.own is None else self.own
        if not isinstance(config, self.chosen.Config):
            raise InputError(f"own: expected a {self.chosen.Config.__name__}, found a {type(config).__name__}")
        object.__setattr__(self, "own", config)

    @property
    def chosen(self) -> Detector:
        """The detector."""
        return detector(self.detector)

    @property
    def method(self) -> str:
        """The detector, and its variant if there is one."""
        return f"{self.detector}, {self.variant}" if self.variant else self.detector

    def settings(self) -> dict[str, Any]:
        """The victim's settings, the clean images where the detector needs any, and the detector's own."""
        return self._settings(super().settings(), self.config, self.own)

    def defaults(self) -> dict[str, Any]:
        """What `settings` would be with every default."""
        return self._settings(super().defaults(), repair_config(self.config.defense), self.chosen.Config())

    def _settings(self, plain: Mapping[str, Any], config: RepairConfig, own: Any) -> dict[str, Any]:
        settings = {name: plain[name] for name in declarations(VictimConfig)}
        if self.chosen.data != "none":
            settings["clean"] = _plain(config.clean) | {"path": "", "data_dir": ""}
        return settings | {"detector": _plain(own)}

    @default_numerics()
    def fill(self, root: pathlib.Path, *, devices: Sequence[jax.Device] | None) -> dict[str, Any]:
        """The row: the detector's verdict beside the ground truth."""
        config, chosen = self.config.victim, self.chosen
        session = open_session(config.model, config.data, devices=devices)
        check_trainable(session, config.attack, config.training)
        clean = clean_inputs(session, chosen, self.config.clean, seed=self.config.clean_seed)
        with session.directory(root / self.group, shared=True) as directory:
            run = Run(session, directory, config.seed)
            victim = open_victim(run, config.attack, config.training)
            stages = run.plan(chosen.plan(self.own), {"victim": victim.variables, **clean})
            test = test_set(run, victim)
            program = jax.jit(lambda variables, test: measure_networks(run.setup, {"victim": variables}, test))
            metrics = program(victim.variables, test)["metrics"]["victim"]
        values = {name: stage.value for name, stage in stages.items()}
        attacked = config.attack.name != "none"
        return {
            "dataset": config.data.name,
            "network": self.network,
            "attack": config.attack.name,
            "detector": self.detector,
            "needs": chosen.data,
            "recipe": self.recipe,
            "variant": self.variant,
            "seed": config.seed,
            "target": config.attack.target if attacked else None,
            "verdict": conclude(chosen, self.own, values, draw=False).plain(),
            "clean_images": len(clean["clean"].labels) if clean else 0,
            "metrics": {
                "victim": {"acc": rounded(metrics.acc), "asr": rounded(metrics.asr) if attacked else None},
            },
            "detector_seconds": round(sum(stage.seconds for stage in stages.values()), 1),
            "stage_seconds": {name: round(stage.seconds, 1) for name, stage in stages.items()},
            "config": self.settings(),
        }

    def in_words(self, row: Mapping[str, Any]) -> str:
        """A row in a line."""
        verdict = row["verdict"]
        asr = row["metrics"]["victim"]["asr"]
        truth = "a clean network" if asr is None else f"attacked on class {row['target']}, ASR {100 * asr:.1f}"
        return (
            f"backdoored: {verdict['backdoored']}, class {verdict['suspect']}: score {verdict['score']:.2f}, "
            f"threshold {verdict['threshold']:.2f}; {truth}; "
            f"{row['detector_seconds']:.0f} s of detection"
        )

    @classmethod
    def draw(cls, grid: Bench, rows: Sequence[Mapping[str, Any]], root: pathlib.Path) -> None:
        """Draws ROC curves, `roc.png`, of the detectors with rows of backdoored and of clean networks."""
        known = curves([Row(str(index), row) for index, row in enumerate(rows, start=1) if "detector" in row])
        if known:
            titles = {name: name.replace("_", " ") for name in known}
            write_figure(root / "roc.png", roc_curves(known, titles), dpi=150, facecolor="white")


def detected_by(name: str, cell: Cell, *, own: Any = None, variant: str = "") -> DetectorCell:
    """The cell of a detector on the victim of another cell."""
    return DetectorCell(cell.config, cell.recipe, variant, name, own)


def _plain(settings: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings)))
    return values
