"""Writes what a user leaves with: metrics.json, neuron_scores.csv, report.html (the checkpoint is already there)."""

from __future__ import annotations

import json

import numpy as np
from matplotlib.figure import Figure

from otbr_jax.experiments.checkpoints import write_text
from otbr_jax.experiments.results import Repair, scores_table, summarize
from otbr_jax.report import page, plots


def write_outputs(result: Repair) -> None:
    """Writes the three files into the run's working directory."""
    summary, folder = summarize(result), result.workdir
    write_text(folder / "metrics.json", json.dumps(summary, indent=1) + "\n")
    write_text(folder / "neuron_scores.csv", scores_table(result))
    pruned = result.stages["pruned"].value["info"].pruned
    in_order = [layer.name for layer in result.layers]
    report = page.render(
        summary,
        scores={name: result.stages["scores"].value[name] for name in in_order},
        pruned=pruned,
        plan=_plan_to_show(result),
        examples=example_predictions(result),
    )
    write_text(folder / "report.html", report)


def _plan_to_show(result: Repair) -> tuple[str, np.ndarray] | None:
    """The plan of the layer with the most pruned neurons."""
    pruned = result.stages["pruned"].value["info"].pruned
    name = max(pruned, key=lambda layer: int(pruned[layer].sum()))
    if not pruned[name].any():
        return None
    return name, result.stages["fused"].value["info"].plans[name].matrix


def example_predictions(result: Repair, *, columns: int = 9) -> Figure | None:
    """The first test image of each class but the target, with answers before and after; None without such images."""
    if result.test is None:
        return None
    target = result.config.attack.target
    labels = np.asarray(result.test.labels)
    if np.all(labels == target):
        return None
    chosen = _one_per_class(labels, [c for c in np.unique(labels) if c != target])[:columns]
    found = result.stages["evaluation"].value["predictions"]
    return plots.predictions(
        np.asarray(result.test.clean)[chosen],
        np.asarray(result.test.triggered)[chosen],
        labels[chosen],
        (found["victim"].clean[chosen], found["victim"].triggered[chosen]),
        (found["fused"].clean[chosen], found["fused"].triggered[chosen]),
        target=target,
    )


def _one_per_class(labels: np.ndarray, classes: list[int]) -> np.ndarray:
    return np.array([int(np.argmax(labels == label)) for label in classes], dtype=int)
