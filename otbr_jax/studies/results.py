"""The result of a run, and its machine-readable forms: all numbers as JSON, the neuron scores as CSV."""

from __future__ import annotations

import csv
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from otbr_jax.data.sources import Dataset
from otbr_jax.defenses.defense import Outcome
from otbr_jax.defenses.grid import rows
from otbr_jax.defenses.registry import defense
from otbr_jax.graph.graph import Layer
from otbr_jax.metrics import Metrics, defense_effectiveness, rounded
from otbr_jax.runs.identity import content_digest, versions
from otbr_jax.runs.store import Stage
from otbr_jax.settings import as_dict
from otbr_jax.steps.score import ranks
from otbr_jax.studies.repair_config import RepairConfig
from otbr_jax.types import Network, Variables
from otbr_jax.victims import relearning
from otbr_jax.victims.evaluation import TestSet


class Repair(NamedTuple):
    """The result of `repair.repair`.

    Attributes:
      variables: the repaired network's variables, in the user's own pytree.
      network: its functions.
      layers: the layers that were repaired, in execution order.
      stages: `attack` and `clean` if there are any (see `victims.Victim`); `victim`, the steps of the defence's plan,
        and `evaluation` if there was data; `relearning` and `relearning_never` if wanted, see
        `measure_relearning`.
      dataset: the data it was measured with, or None.
      test: the test images of the evaluation, or None.
      config: the settings.
      workdir: the folder of the results.
      files: the repaired network in files of the user's format, beside the Orbax checkpoint.
      clean: one line about the clean images that the defence used; None without.
      profile: the folder of a JAX trace of the run; None without.
    """

    variables: Variables
    network: Network
    layers: tuple[Layer, ...]
    stages: Mapping[str, Stage]
    dataset: Dataset | None
    test: TestSet | None
    config: RepairConfig
    workdir: pathlib.Path
    files: tuple[pathlib.Path, ...] = ()
    clean: str | None = None
    profile: pathlib.Path | None = None

    @property
    def outcome(self) -> Outcome:
        """The outcome of the defence's run: verdict, choice, neurons, warnings."""
        values = {name: stage.value for name, stage in self.stages.items()}
        return defense(self.config.defense).outcome(self.config.method, values)

    @property
    def networks(self) -> tuple[str, ...]:
        """The stages that return networks, which are measured; the last one holds the repaired network."""
        return defense(self.config.defense).networks(self.config.method)


ORACLE = "oracle: highest DER on the test set, with the trigger known"


def summarize(result: Repair) -> dict[str, Any]:
    """All numbers of a run as plain JSON values.

    Fractions lie in [0, 1]; what could not be measured (no data, no trigger) is None. `oracle` is the setting of the
    sweep with the highest DER. A defender cannot know it: it is chosen with the test set and the trigger. If settings
    were measured on fewer images first (`screened`), the oracle is one of those measured on all.
    """
    config, outcome = result.config, result.outcome
    names, final = result.networks, result.networks[-1]
    grid = defense(config.defense).grid(config.method) if "evaluation" in result.stages else None
    summary: dict[str, Any] = {
        "defense": config.defense,
        "metrics": dict.fromkeys(names),
        "choice": dict(outcome.choice),
        "verdict": None if outcome.verdict is None else outcome.verdict.plain(),
        **outcome.more,
        "neurons": dict(outcome.neurons),
        "did": outcome.did,
        "done": outcome.done,
        "scored": outcome.scored,
        "score": outcome.score,
        "warnings": [*outcome.warnings],
        "clean": result.clean,
        "oracle": None,
        "sweep": [],
        "screened": None,
        "swept": None if grid is None else grid.network,
        "axes": [] if grid is None else [*grid.axes],
        "along": [] if grid is None else [*grid.along],
        "strength": None if grid is None else grid.strength,
        "relearning": relearning.curves(result.stages, config.relearning),
        "repaired": content_digest(result.stages[final].value.variables),
        "data": None if result.dataset is None else result.dataset.provenance,
        "stages": {
            name: {
                "seconds": round(stage.seconds, 3),
                "spent": dict(stage.spent),
                "megabytes": stage.megabytes,
                "resumed": stage.resumed,
                "digest": stage.digest,
                "versions": dict(stage.provenance["versions"]),
            }
            for name, stage in result.stages.items()
        },
        "profile": None if result.profile is None else str(result.profile),
        "versions": versions(),
        "devices": [str(device.device_kind) for device in jax.local_devices()],
        "config": json.loads(json.dumps(as_dict(config))),
    }
    if "evaluation" in result.stages:
        measured = result.stages["evaluation"].value
        triggered, victim = config.victim.attack.name != "none", measured["metrics"]["victim"]
        row = partial(_row, victim=victim, triggered=triggered)
        summary["metrics"] = {name: row(measured["metrics"][name]) for name in names}
        if grid is not None:
            images = len(measured["predictions"]["victim"].clean)
            sweep = _with_chosen(rows(grid, measured["sweep"], row), summary, images)
            summary["sweep"] = sweep
            summary["warnings"] += _not_converged(sweep)
            fewest = min(one[grid.network].get("images", images) for one in sweep)
            summary["screened"] = {"images": fewest, "of": images} if fewest < images else None
        if triggered and grid is not None:
            whole = [one for one in sweep if one[grid.network].get("images", images) == images]
            best = max(whole, key=lambda row: row[grid.network]["der"])
            setting = {name: best[name] for name in grid.axes}
            summary["oracle"] = setting | {"chosen_by": ORACLE, grid.network: best[grid.network]}
    return summary


def _with_chosen(sweep: list[dict[str, Any]], summary: Mapping[str, Any], images: int) -> list[dict[str, Any]]:
    """The rows of a grid, with the run's own metrics on all images in the row of the chosen setting."""

    def one(row: dict[str, Any]) -> dict[str, Any]:
        if any(row[name] != summary["choice"].get(name) for name in summary["axes"]):
            return row
        fewer = [name for name, value in row.items() if isinstance(value, dict) and "images" in value]
        return row | {name: summary["metrics"][name] | {"images": images} for name in fewer}

    return [one(row) for row in sweep]


def _not_converged(sweep: Sequence[Mapping[str, Any]]) -> list[str]:
    """A warning about the settings of a grid whose transport did not converge."""
    gammas = sorted({row["gamma"] for row in sweep if not row.get("converged", True)})
    return [f"transport did NOT converge in the grid at gamma {', '.join(f'{g:g}' for g in gammas)}"] if gammas else []


def _row(metrics: Metrics, *, victim: Metrics, triggered: bool) -> dict[str, float | None]:
    row: dict[str, float | None] = {"acc": rounded(metrics.acc), "asr": None, "ra": None, "der": None}
    if triggered:
        row |= {
            "asr": rounded(metrics.asr),
            "ra": rounded(metrics.ra),
            "der": rounded(defense_effectiveness(victim, metrics)),
        }
    return row


def scores_table(result: Repair) -> str:
    """CSV of every scored neuron: layer, index, score with all its digits, rank (0 = highest), whether it was changed.

    The last column is named by the change, such as `pruned`.
    """
    outcome = result.outcome
    scores = {layer.name: outcome.scores[layer.name] for layer in result.layers}  # execution order
    places = ranks(scores)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["layer", "neuron", "score", "rank", outcome.did.replace("-", "")])
    for name, own in scores.items():
        rows = zip(own, np.asarray(places[name]), outcome.touched[name], strict=True)
        for neuron, (score, rank, is_touched) in enumerate(rows):
            # 9 significant digits give back the same float32.
            writer.writerow([name, neuron, f"{score:.9g}", rank, int(is_touched)])
    return text.getvalue()
