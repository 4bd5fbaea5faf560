"""The objective of unlearning and fine-tuning: the cross-entropy of a batch in training mode, with gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from otbr_jax.numerics.collectives import mean
from otbr_jax.numerics.convolutions import channels_last
from otbr_jax.types import Batch, Network


class Evaluation(NamedTuple):
    """One training-mode pass over a batch.

    Attributes:
      loss: mean cross-entropy, float32.
      accuracy: of the batch, in [0, 1].
      state: the state after the pass (BatchNorm statistics).
    """

    loss: jax.Array
    accuracy: jax.Array
    state: Any


Objective = Callable[[Any, Any, Batch], tuple[Evaluation, Any]]
"""`(params, state, batch) -> (Evaluation, gradients)`."""


def float32_params(params: Any) -> Any:
    """Parameters at least in float32: steps are too small for half precision."""
    return jax.tree.map(lambda p: p.astype(jnp.promote_types(p.dtype, jnp.float32)), params)


Loss = Callable[[Any, Batch], tuple[jax.Array, tuple[jax.Array, Any]]]
"""`(variables, batch) -> (loss, (logits [n, classes], state))`: a scalar, and the other results of the pass."""


def cross_entropy(network: Network, like: Any, *, axis_name: str | None = None) -> Objective:
    """The mean cross-entropy of a batch in training mode, and its gradients.

    Args:
      network: the functions of the network.
      like: parameters in the dtypes that the network computes in; others are rounded to them.
        Labels may be int `[n]`, or probabilities `[n, classes]`.
      axis_name: mapped axis over which everything is averaged; the network's BatchNorm must average its statistics over
        the same axis if results must not depend on the number of devices.
    """

    def loss(variables: Any, batch: Batch) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        logits, state = network.train(variables, batch.images)
        return jnp.mean(losses(logits, batch.labels)), (logits, state)

    return make_objective(loss, like, axis_name=axis_name)


def make_objective(loss: Loss, like: Any, *, axis_name: str | None = None) -> Objective:
    """A loss of a batch, and its gradients with respect to the parameters; arguments as of `cross_entropy`."""

    def loss_in_dtype(params: Any, state: Any, batch: Batch) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        params = jax.tree.map(lambda p, own: p.astype(own.dtype), params, like)
        value, (logits, new_state) = loss({"params": params, **state}, batch)
        labels = batch.labels if batch.labels.ndim == 1 else jnp.argmax(batch.labels, axis=-1)
        accuracy = jnp.mean((jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32))
        return mean(value, axis_name), (
            accuracy,
            jax.tree.map(lambda new, old: new.astype(old.dtype), new_state, state),
        )

    loss_and_grads = channels_last(jax.value_and_grad(loss_in_dtype, has_aux=True))

    def objective(params: Any, state: Any, batch: Batch) -> tuple[Evaluation, Any]:
        (value, (accuracy, new_state)), grads = loss_and_grads(params, state, batch)
        return Evaluation(value, *mean((accuracy, new_state), axis_name)), mean(grads, axis_name)

    return objective


def losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The cross-entropy of each image, float32 `[n]`; labels are int `[n]`, or probabilities `[n, classes]`."""
    logits = logits.astype(jnp.float32)
    if labels.ndim == 1:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return optax.softmax_cross_entropy(logits, labels)


def training_state(network: Network, like: Any, *, axis_name: str | None = None) -> Callable[[Any, Any, Batch], Any]:
    """`(params, state, batch) -> state`: one training-mode pass that updates the state alone."""

    def pass_over(params: Any, state: Any, batch: Batch) -> Any:
        rounded = jax.tree.map(lambda p, own: p.astype(own.dtype), params, like)
        _, new_state = network.train({"params": rounded, **state}, batch.images)
        new_state = jax.tree.map(lambda new, old: new.astype(old.dtype), new_state, state)
        return mean(new_state, axis_name)

    return channels_last(pass_over)
