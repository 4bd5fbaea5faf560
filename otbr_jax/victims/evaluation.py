"""Measuring networks: predictions over a test set, and their metrics."""

from __future__ import annotations

from typing import NamedTuple

import jax

from otbr_jax.metrics import Metrics, evaluate_predictions
from otbr_jax.steps.answers import answers
from otbr_jax.types import Network, Variables


class TestSet(NamedTuple):
    """What networks are measured on.

    Attributes:
      clean: uint8 images `[n, h, w, c]`.
      triggered: the same with the trigger.
      labels: int32 `[n]`, their true classes.
      goals: int32 `[n]`, what the attacker wants the triggered ones to be answered with.
    """

    clean: jax.Array
    triggered: jax.Array
    labels: jax.Array
    goals: jax.Array


class Predictions(NamedTuple):
    """Predicted classes int32 `[n]` of a test set's clean and triggered images."""

    clean: jax.Array
    triggered: jax.Array


def predict_both(network: Network, variables: Variables, test: TestSet) -> Predictions:
    """Predictions on the clean and on the triggered images."""
    clean, triggered = (answers(network, variables, images) for images in (test.clean, test.triggered))
    return Predictions(clean, triggered)


def measure(network: Network, variables: Variables, test: TestSet) -> Metrics:
    """ACC, ASR and RA of a network on a test set."""
    found = predict_both(network, variables, test)
    return evaluate_predictions(found.clean, found.triggered, test.labels, target=test.goals)
