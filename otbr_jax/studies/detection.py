"""Detectors on networks whose backdoors are known: one row for each victim and detector, and ROC curves of them all."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from otbr_jax.data import sources
from otbr_jax.data.sources import Dataset
from otbr_jax.detectors.detector import Detector, conclude
from otbr_jax.detectors.registry import detector
from otbr_jax.errors import InputError
from otbr_jax.files import write_figure
from otbr_jax.metrics import settled
from otbr_jax.report.detector_tables import curves
from otbr_jax.report.plots import roc_curves
from otbr_jax.report.rows import Row
from otbr_jax.runs.devices import batch_mesh, check_batch_size
from otbr_jax.runs.networks import check_classes, open_network
from otbr_jax.runs.numerics import as_usual
from otbr_jax.runs.run import Run
from otbr_jax.runs.store import open_workdir
from otbr_jax.settings import declarations
from otbr_jax.studies.bench import Cell, Grid
from otbr_jax.studies.repair import clean_images, measure_networks
from otbr_jax.studies.repair_config import AnyRepairConfig
from otbr_jax.types import Batch, Network
from otbr_jax.victims.config import VictimConfig
from otbr_jax.victims.victims import check_trainable, open_victim, subject_of, test_set


def given_clean(
    config: AnyRepairConfig, chosen: Detector, network: Network, dataset: Dataset | None = None
) -> dict[str, Batch]:
    """What a detector's plan is given beside the network: nothing, or the clean images that `config.clean` names.

    Args:
      config: of the run.
      chosen: the detector.
      network: the functions of the network.
      dataset: the run's data; loaded if a detector needs clean images and none are given.

    Raises:
      InputError: if clean images are needed and there are none, or they do not fit the network.
    """
    if chosen.data == "none":
        return {}
    if dataset is None:
        dataset = sources.load(config.data, image_shape=network.image_shape, num_classes=network.num_classes)
    return {"clean": Batch(*map(jnp.asarray, clean_images(config, dataset, network).images))}


@dataclasses.dataclass(frozen=True)
class DetectorCell(Cell):
    """One row to be: what a detector says of a victim that is trained for it, or of a clean network.

    Attributes:
      config: the victim's settings, and which clean images a defender has; nothing else of a repair's counts.
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
    def way(self) -> str:
        """The detector, and its variant if there is one."""
        return f"{self.detector}, {self.variant}" if self.variant else self.detector

    def settings(self) -> dict[str, Any]:
        """The victim's settings, the clean images where the detector needs any, and the detector's own."""
        return self._settings(super().settings(), self.config, self.own)

    def defaults(self) -> dict[str, Any]:
        """What `settings` would be with every default."""
        return self._settings(super().defaults(), type(self.config)(), self.chosen.Config())

    def _settings(self, plain: Mapping[str, Any], config: AnyRepairConfig, own: Any) -> dict[str, Any]:
        found = {name: plain[name] for name in declarations(VictimConfig)}
        if self.chosen.data != "none":
            found["clean"] = _plain(config.clean) | {"path": "", "data_dir": ""}
        return found | {"detector": _plain(own)}

    @as_usual()
    def fill(self, root: pathlib.Path, *, devices: Sequence[jax.Device] | None) -> dict[str, Any]:
        """The row: the detector's verdict, beside what is true."""
        config, chosen, mesh = self.config, self.chosen, batch_mesh(devices)
        subject = open_network(config.model)
        check_classes(subject.network)
        check_batch_size(config.training.batch_size, mesh, name="training.batch_size")
        network = subject.network
        dataset = sources.load(config.data, image_shape=network.image_shape, num_classes=network.num_classes)
        check_trainable(config, subject, dataset)
        assert dataset is not None  # a cell's data is not `none`
        clean = given_clean(config, chosen, network, dataset)
        with open_workdir(root / self.group, subject=subject_of(config), shared=True) as directory:
            run = Run(config, directory, subject, mesh)
            victim = open_victim(run, dataset)
            variables = victim.stage.value["variables"]
            stages = run.plan(chosen.plan(self.own), {"victim": variables, **clean})
            test = test_set(run, dataset.test, victim)
            program = jax.jit(lambda variables, test: measure_networks(run.setup, {"victim": variables}, test))
            measured = program(variables, test)["metrics"]["victim"]
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
                "victim": {"acc": settled(measured.acc), "asr": settled(measured.asr) if attacked else None},
            },
            "detector_seconds": round(sum(stage.seconds for stage in stages.values()), 1),
            "stage_seconds": {name: round(stage.seconds, 1) for name, stage in stages.items()},
            "config": self.settings(),
        }

    def in_words(self, row: Mapping[str, Any]) -> str:
        """A row in a line."""
        found = row["verdict"]
        asr = row["metrics"]["victim"]["asr"]
        truth = "a clean network" if asr is None else f"attacked on class {row['target']}, ASR {100 * asr:.1f}"
        return (
            f"backdoored: {found['backdoored']}, class {found['suspect']} scores {found['score']:.2f} of "
            f"{found['threshold']:.2f}; {truth}; "
            f"{row['detector_seconds']:.0f} s of detection"
        )

    @classmethod
    def draw(cls, grid: Grid, found: Sequence[Mapping[str, Any]], root: pathlib.Path) -> None:
        """ROC curves of the detectors, `roc.png`, of those that have seen networks of both kinds."""
        known = curves([Row(str(index), row) for index, row in enumerate(found, start=1) if "detector" in row])
        if known:
            titles = {name: name.replace("_", " ") for name in known}
            write_figure(root / "roc.png", roc_curves(known, titles), dpi=150, facecolor="white")


def detected_by(name: str, cell: Cell, *, own: Any = None, variant: str = "") -> DetectorCell:
    """The cell of a detector on the victim of another cell, whatever that does with it."""
    return DetectorCell(cell.config, cell.recipe, variant, name, own)


def _plain(settings: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings)))
    return values
