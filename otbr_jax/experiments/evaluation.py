"""Measuring networks: predictions over a test set, and their metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from otbr_jax.runs.devices import split_batch
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


class Predictions(NamedTuple):
    """Predicted classes int32 `[n]` of a test set's clean and triggered images."""

    clean: jax.Array
    triggered: jax.Array


def predict(
    network: Network,
    variables: Variables,
    images: jax.Array,
    *,
    prepare: Callable[[jax.Array], jax.Array],
    mesh: Mesh,
    batch_size: int = 512,
) -> jax.Array:
    """Predicted classes, int32 `[n]`, of uint8 images `[n, h, w, c]`; batches are split over the mesh.

    `batch_size` is rounded up to a multiple of the mesh's devices; the last batch is filled up with copies.
    """
    count = len(images)
    batch_size = -(-min(batch_size, count) // mesh.size) * mesh.size
    padded = -(-count // batch_size) * batch_size
    batches = images[jnp.arange(padded) % count].reshape(-1, batch_size, *images.shape[1:])

    def one_batch(batch: jax.Array) -> jax.Array:
        return jnp.argmax(network.apply(variables, prepare(split_batch(batch, mesh))), axis=-1)

    return jax.lax.map(one_batch, batches).reshape(-1)[:count].astype(jnp.int32)


def predict_both(
    network: Network,
    variables: Variables,
    test: TestSet,
    *,
    prepare: Callable[[jax.Array], jax.Array],
    mesh: Mesh,
) -> Predictions:
    """Predictions on the clean and on the triggered images."""
    clean = predict(network, variables, test.clean, prepare=prepare, mesh=mesh)
    return Predictions(clean, predict(network, variables, test.triggered, prepare=prepare, mesh=mesh))


def measure(
    network: Network,
    variables: Variables,
    test: TestSet,
    *,
    prepare: Callable[[jax.Array], jax.Array],
    mesh: Mesh,
) -> Metrics:
    """ACC, ASR and RA of a network on a test set."""
    found = predict_both(network, variables, test, prepare=prepare, mesh=mesh)
    return evaluate_predictions(found.clean, found.triggered, test.labels, target=test.goals)
