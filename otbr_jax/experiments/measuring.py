"""What the last stage of every defence measures of its networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from otbr_jax.experiments import evaluation
from otbr_jax.experiments.evaluation import TestSet
from otbr_jax.runs.run import Run
from otbr_jax.types import Variables


def measure_networks(run: Run, networks: Mapping[str, Variables], test: TestSet) -> dict[str, Any]:
    """`predictions` and `metrics` of every network, by its name; jits."""
    predictions = {
        name: evaluation.predict_both(run.network, variables, test, prepare=run.prepare, mesh=run.mesh)
        for name, variables in networks.items()
    }
    metrics = {
        name: evaluation.evaluate_predictions(found.clean, found.triggered, test.labels, target=test.goals)
        for name, found in predictions.items()
    }
    return {"predictions": predictions, "metrics": metrics}
