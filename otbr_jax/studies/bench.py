"""Benches: named lists of cells, each of which becomes one row of results; `bench_run.run_bench` runs them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
import runpy
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from otbr_jax.errors import InputError
from otbr_jax.files import write_bytes, write_figure, write_text
from otbr_jax.paths import GRID, existing
from otbr_jax.report import gallery
from otbr_jax.report.gallery import Example
from otbr_jax.report.quality import Quality
from otbr_jax.runs.identity import versions
from otbr_jax.settings import change, with_current_names
from otbr_jax.studies.repair import repair
from otbr_jax.studies.repair_config import RepairConfig, default_config, plain_config
from otbr_jax.studies.results import Repair, summarize
from otbr_jax.victims.examples import example_triggers


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row of a bench: a victim is trained and repaired.

    Attributes:
      config: the settings.
      recipe: the name of the victim's training recipe.
      variant: a name for these settings of the defence, if a grid has several of one defence.
    """

    config: RepairConfig
    recipe: str = "published"
    variant: str = ""

    def __post_init__(self) -> None:
        name, checkpoint = self.config.victim.data.name, self.config.victim.model.checkpoint
        if checkpoint or name == "none":
            raise InputError(
                f"cell: expected data to train a victim on and no model.checkpoint, found {name!r} and {checkpoint!r}"
            )

    @property
    def network(self) -> str:
        """The network's name and sizes, such as `preact_resnet18-w64`."""
        model = self.config.victim.model
        width = f"-w{model.width}" if model.width else ""
        depth = f"-d{'.'.join(map(str, model.depth))}" if model.depth else ""
        return f"{model.name}{width}{depth}"

    @property
    def group(self) -> str:
        """The working directory, inside which cells share clean networks and victims."""
        return f"{self.config.victim.data.name}/{self.network}"

    @property
    def victim(self) -> str:
        """The victim: data, network, recipe, attack, seed."""
        return "/".join((self.group, self.recipe, self.config.victim.attack.name, self.draws[0]))

    @property
    def name(self) -> str:
        """The cell's name: data, network, recipe, attack, defence and variant, seed, repetition if not 0."""
        return "/".join((self.group, self.recipe, self.config.victim.attack.name, self.method, *self.draws))

    @property
    def draws(self) -> tuple[str, ...]:
        """The random numbers: the seed, and the repetition if it is not 0, such as `seed1`, `run2`."""
        repetition = self.config.repetition
        return (f"seed{self.config.victim.seed}", *([f"run{repetition}"] if repetition else []))

    @property
    def method(self) -> str:
        """The defence, and its variant if there is one."""
        return f"{self.config.defense}, {self.variant}" if self.variant else self.config.defense

    def settings(self) -> dict[str, Any]:
        """The settings as a row holds them."""
        return plain_config(self.config)

    def defaults(self) -> dict[str, Any]:
        """What `settings` would be with every default."""
        return default_config(self.config)

    def matches(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of results is this cell's: the same settings, but for those that are newer than the row.

        A setting that the row does not hold must have its default, which means the behaviour from before that setting
        existed. So rows stay valid when a setting or a kind of evidence is added.
        """
        if row.get("cell") != self.name or row.get("versions", {}).get("otbr_jax") != versions()["otbr_jax"]:
            return False
        return _agree(with_current_names(type(self.config), row.get("config", {})), self.settings(), self.defaults())

    @functools.cached_property
    def id(self) -> str:
        """A hash of all settings but the paths of data, and of the package's version."""
        settings = self.settings() | {"otbr_jax": versions()["otbr_jax"]}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    def fill(self, root: pathlib.Path, *, devices: Sequence[jax.Device] | None) -> dict[str, Any]:
        """Computes the row below the folder `root`; raises InputError if it cannot be computed."""
        folder = f"cells/{_slug(self)}"
        result = repair(self.config, root / self.group, results=folder, shared=True, devices=devices)
        assert result.test is not None  # a cell's data is not `none`
        example = example_triggers(
            result.test,
            self.config.victim.attack,
            name=f"{self.config.victim.attack.name}, {self.config.victim.data.name}",
        )
        if example is not None:
            _save_example(result.workdir / "trigger.npz", example)
        return make_row(self, result, example)

    def in_words(self, row: Mapping[str, Any]) -> str:
        """A row in a line."""

        def part(name: str) -> str:
            metrics = row["metrics"][name]
            values = [metrics["acc"]] + ([] if metrics["asr"] is None else [metrics["asr"]])
            return " / ".join(f"{100 * value:.1f}" for value in values)

        return f"victim {part('victim')}, repaired {part([*row['metrics']][-1])}"

    @classmethod
    def draw(cls, grid: Bench, rows: Sequence[Mapping[str, Any]], root: pathlib.Path) -> None:
        """Draws the figures of all cells of this kind into the folder `root`; `rows` are those of the grid."""
        del rows
        own = [cell for cell in grid.cells if type(cell) is cls]
        examples = [_load_example(path) for cell in own if (path := _example_path(root, cell)).exists()]
        if examples:
            write_text(root / "gallery.html", gallery.render(examples, title=f"Triggers of the bench {grid.name}"))
            write_figure(root / "triggers.png", gallery.overview(examples), dpi=150, facecolor="white")


def _agree(recorded: Any, wanted: Any, default: Any) -> bool:
    if not isinstance(wanted, Mapping) or not isinstance(recorded, Mapping):
        return bool(recorded == wanted)
    return all(
        _agree(recorded[name], value, default.get(name)) if name in recorded else value == default.get(name)
        for name, value in wanted.items()
    )


@dataclasses.dataclass(frozen=True)
class Bench:
    """A named list of cells, no two of which have the same name."""

    name: str
    cells: tuple[Cell, ...]

    def __post_init__(self) -> None:
        names = [cell.name for cell in self.cells]
        if not names:
            raise InputError(f"grid {self.name}: expected a cell, found none")
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"grid {self.name}: expected each cell once, found {name} twice")


def load_grid(path: str | os.PathLike[str], *, only: str = "", notes: Mapping[str, str] | None = None) -> Bench:
    """Runs a grid file and returns the bench of its `get_grid()`.

    Args:
      path: the Python file.
      only: keeps the cells whose names contain this.
      notes: what a reader has to know about this machine's copies of data sets (`DataConfig.note`), by their names.

    Raises:
      InputError: names the file, or what `only` or `notes` do not match.
    """
    existing(path, name="--grid", expected=GRID, is_there=pathlib.Path.is_file)
    try:
        grid = runpy.run_path(os.fspath(path))["get_grid"]()
    except InputError:
        raise
    except Exception as error:  # whatever a user's file does
        raise InputError(f"--grid: {path} cannot be run ({type(error).__name__}: {error})") from None
    if not isinstance(grid, Bench):
        raise InputError(f"--grid: expected {path}'s get_grid() to return a Bench, found {type(grid).__name__}")
    names = sorted({cell.config.victim.data.name for cell in grid.cells})
    for name in notes or {}:
        if name not in names:
            raise InputError(f"--note: expected a note on one of {names}, found one on {name!r}")
    cells = tuple(cell for cell in grid.cells if only in cell.name)
    if not cells:
        raise InputError(f"--only: expected a part of a cell's name, such as {grid.cells[0].name}, found {only!r}")
    return dataclasses.replace(grid, cells=tuple(_with_note(cell, notes or {}) for cell in cells))


def _with_note(cell: Cell, notes: Mapping[str, str]) -> Cell:
    data = cell.config.victim.data
    data = dataclasses.replace(data, note=notes.get(data.name, data.note))
    return dataclasses.replace(cell, config=change(cell.config, data=data))


def make_row(cell: Cell, result: Repair, example: Example | None) -> dict[str, Any]:
    """The row of a cell's run: plain JSON values; fractions in [0, 1]."""
    summary, config, victim = summarize(result), cell.config.victim, result.stages["victim"]
    assert result.dataset is not None
    assert result.dataset.train is not None
    kept = ("metrics", "choice", "verdict", *result.outcome.more, "oracle", "data", "sweep", "clean", "relearning")
    return {
        "dataset": config.data.name,
        "network": cell.network,
        "attack": config.attack.name,
        "defense": cell.config.defense,
        "recipe": cell.recipe,
        "variant": cell.variant,
        "seed": config.seed,
        "repetition": cell.config.repetition,
        "poisoned": int(victim.value["poisoned"]),
        "train_images": len(result.dataset.train.labels),
        "test_images": len(result.dataset.test.labels),
        **{name: summary[name] for name in kept if name in summary},
        "trigger": None if example is None else {"psnr": example.quality.psnr, "ssim": example.quality.ssim},
        "training": {"epochs": config.training.epochs, **victim.provenance["notes"]},
        "stage_seconds": {name: round(stage.seconds, 1) for name, stage in result.stages.items()},
        "stage_cpu_seconds": {name: _rounded(stage.cpu_seconds) for name, stage in result.stages.items()},
        "stage_megabytes": {name: stage.megabytes for name, stage in result.stages.items()},
        "config": plain_config(cell.config),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)


def _slug(cell: Cell) -> str:
    return "-".join((cell.recipe, cell.config.victim.attack.name, cell.method, *cell.draws))


def _example_path(root: pathlib.Path, cell: Cell) -> pathlib.Path:
    return root / cell.group / "cells" / _slug(cell) / "trigger.npz"


def _save_example(path: pathlib.Path, example: Example) -> None:
    content = io.BytesIO()
    np.savez(content, **example._asdict() | {"quality": json.dumps(example.quality._asdict())})
    write_bytes(path, content.getvalue())


def _load_example(path: pathlib.Path) -> Example:
    with np.load(path, allow_pickle=False) as file:
        values = {name: file[name] for name in Example._fields}
    quality = Quality(**json.loads(str(values["quality"])))
    return Example(str(values["name"]), values["clean"], values["triggered"], quality, str(values["note"]))
