"""Writes the results of a repair beside its checkpoint: metrics.json, neuron_scores.csv, report.html."""

from __future__ import annotations

import json
import pathlib
from typing import TYPE_CHECKING

import numpy as np

from otbr_jax.files import write_text
from otbr_jax.report import page, plots
from otbr_jax.studies.results import Repair, scores_table, summarize
from otbr_jax.victims.examples import one_per_class

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def replacement_warning(folder: pathlib.Path, defense: str) -> str:
    """A line if a folder holds the results of another defence, which those of this one will replace; else empty."""
    try:
        before = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["defense"]
    except (OSError, ValueError, TypeError, KeyError):
        return ""
    return (
        "" if before == defense else f"{folder}: the results of {before} will be replaced; another workdir keeps both"
    )


def write_outputs(result: Repair) -> None:
    """Writes the three files into the run's working directory."""
    summary, outcome, folder = summarize(result), result.outcome, result.workdir
    write_text(folder / "metrics.json", json.dumps(summary, indent=1) + "\n")
    write_text(folder / "neuron_scores.csv", scores_table(result))
    in_order = [layer.name for layer in result.layers]
    report = page.render(
        summary,
        scores={name: np.asarray(outcome.scores[name]) for name in in_order},
        chosen={name: np.asarray(mask) for name, mask in outcome.touched.items()},
        plan=outcome.plan,
        triggers=None if outcome.verdict is None else outcome.verdict.triggers,
        examples=example_predictions(result),
        files=("repaired", *(file.name for file in result.files)),
    )
    write_text(folder / "report.html", report)


def example_predictions(result: Repair, *, columns: int = 9) -> Figure | None:
    """The first test image of each class but the attacker's, with the predictions before and after the repair.

    Without a known trigger the images are clean. None without such images.
    """
    if result.test is None:
        return None
    labels, goals = np.asarray(result.test.labels), np.asarray(result.test.goals)
    attacked = result.config.victim.attack.name != "none"
    others = np.unique(labels[labels != goals] if attacked else labels)
    if len(others) == 0:
        return None
    chosen = one_per_class(labels, list(others))[:columns]
    predictions = result.stages["evaluation"].value["predictions"]
    victim, repaired = predictions["victim"], predictions[result.networks[-1]]
    return plots.predictions(
        np.asarray(result.test.clean)[chosen],
        np.asarray(result.test.triggered)[chosen] if attacked else None,
        labels[chosen],
        (victim.clean[chosen], victim.triggered[chosen]),
        (repaired.clean[chosen], repaired.triggered[chosen]),
        goals=goals[chosen],
    )
