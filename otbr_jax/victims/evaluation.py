"""Measuring networks: predictions over a test set, and their metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.metrics import Metrics, evaluate_predictions
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


def balanced(test: TestSet, images: int, *, key: jax.Array) -> TestSet:
    """So many images of a test set, drawn by a key: of every class as many, as far as there are. Jits."""
    order = jax.random.permutation(key, len(test.labels))
    by_class = order[jnp.argsort(test.labels[order], stable=True)]
    labels = test.labels[by_class]
    turn = jnp.arange(len(labels)) - jnp.searchsorted(labels, labels)  # how many of its class come before
    chosen = by_class[jnp.argsort(turn, stable=True)][:images]
    return TestSet(*(field[chosen] for field in test))


class Predictions(NamedTuple):
    """Predicted classes int32 `[n]` of a test set's clean and triggered images."""

    clean: jax.Array
    triggered: jax.Array


Place = Callable[[Any], Any]
"""Says, inside jit, where a batch lies on the devices."""


def predict(
    network: Network,
    variables: Variables,
    images: jax.Array,
    *,
    place: Place = lambda batch: batch,
    devices: int = 1,
    batch_size: int = 512,
) -> jax.Array:
    """Predicted classes, int32 `[n]`, of uint8 images `[n, h, w, c]`; devices share each batch.

    `batch_size` is rounded up to a multiple of the devices; the last batch is filled up with copies.
    """
    count = len(images)
    batch_size = -(-min(batch_size, count) // devices) * devices
    padded = -(-count // batch_size) * batch_size
    batches = images[jnp.arange(padded) % count].reshape(-1, batch_size, *images.shape[1:])

    def one_batch(batch: jax.Array) -> jax.Array:
        return jnp.argmax(network.answer(variables, place(batch)), axis=-1)

    return jax.lax.map(one_batch, batches).reshape(-1)[:count].astype(jnp.int32)


def predict_both(
    network: Network, variables: Variables, test: TestSet, *, place: Place = lambda batch: batch, devices: int = 1
) -> Predictions:
    """Predictions on the clean and on the triggered images."""
    clean, triggered = (
        predict(network, variables, images, place=place, devices=devices) for images in (test.clean, test.triggered)
    )
    return Predictions(clean, triggered)


def measure(
    network: Network, variables: Variables, test: TestSet, *, place: Place = lambda batch: batch, devices: int = 1
) -> Metrics:
    """ACC, ASR and RA of a network on a test set."""
    found = predict_both(network, variables, test, place=place, devices=devices)
    return evaluate_predictions(found.clean, found.triggered, test.labels, target=test.goals)
