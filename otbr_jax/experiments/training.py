"""Training victims: one compiled program per epoch over a data set that lies on the devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from otbr_jax.convolutions import channels_last
from otbr_jax.errors import InputError
from otbr_jax.experiments.parallel import split_batch
from otbr_jax.types import Network, Variables, split


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """SGD with momentum, weight decay and a cosine schedule.

    Attributes:
      epochs: passes over the training set.
      batch_size: images per step, over all devices together; the last, incomplete batch of an epoch is left out.
      learning_rate: at the start; falls to zero along a cosine.
      momentum: of SGD.
      weight_decay: added to the gradients, as PyTorch's SGD does.
    """

    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        for field in ("epochs", "batch_size"):
            if getattr(self, field) < 1:
                raise InputError(f"training.{field}: expected at least 1, found {getattr(self, field)}")
        if not 0 < self.learning_rate < float("inf"):
            raise InputError(f"training.learning_rate: expected a finite number above 0, found {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise InputError(f"training.momentum: expected a number in [0, 1), found {self.momentum}")
        if not 0 <= self.weight_decay < float("inf"):
            raise InputError(f"training.weight_decay: expected a finite number from 0, found {self.weight_decay}")


def train(
    network: Network,
    variables: Variables,
    images: jax.Array,
    labels: jax.Array,
    *,
    key: jax.Array,
    config: TrainingConfig,
    prepare: Callable[[jax.Array], jax.Array],
    mesh: Mesh,
    on_epoch: Callable[[float], None] = lambda loss: None,
) -> Variables:
    """Trains a network on images that are on the devices as uint8.

    Args:
      network: the functions of the network.
      variables: where training starts.
      images: uint8 `[n, h, w, c]`.
      labels: int32 `[n]`.
      key: typed PRNG key: the order of the images.
      config: epochs, batch size, learning rate, ...
      prepare: uint8 images -> float32 images as the network takes them.
      mesh: devices that share each batch.
      on_epoch: called after each epoch with its mean loss (a progress bar).

    Returns:
      The trained variables.

    Raises:
      InputError: if there are fewer images than one batch, or the loss is not finite.
    """
    steps = len(labels) // config.batch_size
    if steps == 0:
        raise InputError(f"training.batch_size: expected at most {len(labels)} images, found {config.batch_size}")
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.epochs * steps)
    optimizer = optax.chain(
        optax.add_decayed_weights(config.weight_decay), optax.sgd(schedule, momentum=config.momentum)
    )

    def loss_fn(params: Any, state: Any, batch_images: jax.Array, batch_labels: jax.Array) -> tuple[jax.Array, Any]:
        logits, state = network.train({"params": params, **state}, prepare(batch_images))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch_labels)), state

    loss_and_grads = channels_last(jax.value_and_grad(loss_fn, has_aux=True))

    copied = NamedSharding(mesh, PartitionSpec())

    @partial(jax.jit, out_shardings=copied, donate_argnums=0)
    def epoch(carry: Any, key: jax.Array, images: jax.Array, labels: jax.Array) -> tuple[Any, jax.Array]:
        order = jax.random.permutation(key, len(labels))[: steps * config.batch_size]

        def step(carry: Any, chosen: jax.Array) -> tuple[Any, jax.Array]:
            params, state, optimizer_state = carry
            batch = split_batch((images[chosen], labels[chosen]), mesh)
            (loss, state), grads = loss_and_grads(params, state, *batch)
            updates, optimizer_state = optimizer.update(grads, optimizer_state, params)
            return (optax.apply_updates(params, updates), state, optimizer_state), loss

        carry, losses = jax.lax.scan(step, carry, order.reshape(steps, config.batch_size))
        return carry, jnp.mean(losses)

    params, state = split(variables)
    # A fresh copy on every device: the first call then compiles the program of all calls, and may reuse its memory.
    carry = jax.device_put(jax.tree.map(jnp.copy, (params, state, optimizer.init(params))), copied)
    for index in range(config.epochs):
        carry, loss = epoch(carry, jax.random.fold_in(key, index), images, labels)
        if not bool(jnp.isfinite(loss)):
            raise InputError(
                f"training.learning_rate: expected a finite loss, found {loss} in epoch {index + 1} of "
                f"{config.epochs}; lower it from {config.learning_rate}"
            )
        on_epoch(float(loss))
    return {"params": carry[0], **carry[1]}
