"""Measuring networks: predictions over a test set, and their metrics."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.metrics import Metrics, evaluate_predictions
from otbr_jax.steps.predictions import predict
from otbr_jax.types import Network, Variables


class TestSet(NamedTuple):
    """What networks are measured on.

    Attributes:
      clean: uint8 images `[n, h, w, c]`.
      triggered: the same with the trigger.
      labels: int32 `[n]`, their true classes.
      goals: int32 `[n]`, the classes that the attacker wants the triggered ones to be predicted as.
    """

    clean: jax.Array
    triggered: jax.Array
    labels: jax.Array
    goals: jax.Array


def balanced(test: TestSet, images: int, *, key: jax.Array) -> TestSet:
    """A random subset of a test set with equally many images of every class, as far as there are. Jits."""
    order = jax.random.permutation(key, len(test.labels))
    by_class = order[jnp.argsort(test.labels[order], stable=True)]
    labels = test.labels[by_class]
    turn = jnp.arange(len(labels)) - jnp.searchsorted(labels, labels)  # how many images of its class come before
    chosen = by_class[jnp.argsort(turn, stable=True)][:images]
    return TestSet(*(field[chosen] for field in test))


class Predictions(NamedTuple):
    """Predicted classes int32 `[n]` of a test set's clean and triggered images."""

    clean: jax.Array
    triggered: jax.Array


def predict_both(network: Network, variables: Variables, test: TestSet) -> Predictions:
    """Predictions on the clean and on the triggered images."""
    clean, triggered = (predict(network, variables, images) for images in (test.clean, test.triggered))
    return Predictions(clean, triggered)


def measure(network: Network, variables: Variables, test: TestSet) -> Metrics:
    """ACC, ASR and RA of a network on a test set."""
    predictions = predict_both(network, variables, test)
    return evaluate_predictions(predictions.clean, predictions.triggered, test.labels, target=test.goals)
