"""Unlearning: gradient *ascent* on the cross-entropy, whose weight changes reveal backdoor neurons."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from otbr_jax.convolutions import channels_last
from otbr_jax.errors import InputError
from otbr_jax.types import Batch, BatchFn, Network, Variables, split


@dataclasses.dataclass(frozen=True)
class UnlearningConfig:
    """Random unlearning as published (OTBR, step 1).

    Attributes:
      steps: number of ascent steps.
      batch_size: images per step, over all devices together.
      learning_rate: of SGD without weight decay.
      momentum: of SGD, in [0, 1).
    """

    steps: int = 20
    batch_size: int = 256
    learning_rate: float = 1e-4
    momentum: float = 0.9

    def __post_init__(self) -> None:
        for field in ("steps", "batch_size"):
            if getattr(self, field) < 1:
                raise InputError(f"unlearning.{field}: expected at least 1, found {getattr(self, field)}")
        if not 0 < self.learning_rate < float("inf"):
            raise InputError(f"unlearning.learning_rate: expected a finite number above 0, found {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise InputError(f"unlearning.momentum: expected a number in [0, 1), found {self.momentum}")


class UnlearningInfo(NamedTuple):
    """`loss [steps]`: mean cross-entropy of each step's batch, before the step."""

    loss: jax.Array


def noise_batches(network: Network, *, batch_size: int, axis_name: str | None = None) -> BatchFn:
    """Batches of uniform-[0, 1) noise with uniformly random labels (OTBR, step 1).

    Every image comes from a key of its own, `fold_in(key, index)`, so that the noise does not depend on how many
    devices share the batch: each device makes just its own part.

    Args:
      network: says the shape of the images and the number of classes.
      batch_size: images per batch, over all devices of `axis_name` together.
      axis_name: mapped axis whose devices share the batch; each then gets `batch_size / axis size` images.

    Returns:
      `key -> Batch`; the key must be the same on all devices. It raises InputError, when traced, if the devices
      of `axis_name` cannot share `batch_size` evenly.
    """

    def one_image(key: jax.Array) -> Batch:
        image_key, label_key = jax.random.split(key)
        return Batch(
            jax.random.uniform(image_key, network.image_shape),
            jax.random.randint(label_key, (), 0, network.num_classes),
        )

    def batch(key: jax.Array) -> Batch:
        indices = jnp.arange(batch_size)
        if axis_name is not None:
            devices = jax.lax.axis_size(axis_name)
            if batch_size % devices:
                raise InputError(f"unlearning.batch_size: expected a multiple of {devices} devices, found {batch_size}")
            share = batch_size // devices
            indices = jax.lax.axis_index(axis_name) * share + jnp.arange(share)
        return jax.vmap(lambda index: one_image(jax.random.fold_in(key, index)))(indices)

    return batch


def unlearn(
    network: Network,
    variables: Variables,
    batches: BatchFn | Batch,
    *,
    key: jax.Array | None = None,
    config: UnlearningConfig,
    axis_name: str | None = None,
    on_step: Callable[[], None] | None = None,
) -> tuple[Variables, UnlearningInfo]:
    """Gradient ascent on the cross-entropy of `batches`, in training mode, over all parameters.

    Guarantee: touches no data but what `batches` makes.

    Args:
      network: the functions of the network.
      variables: the (suspicious) network's variables.
      batches: `key -> Batch`, called once a step with a key of its own; or the batches themselves, images
        `[steps, n, h, w, c]` and labels `[steps, n]`.
      key: typed PRNG key, which only a function of keys needs; the same on all devices of `axis_name`.
      config: steps, learning rate, momentum (`batch_size` is used by whoever makes `batches`).
      axis_name: mapped axis over which gradients and losses are averaged; the network's BatchNorm must average
        its statistics over the same axis if results shall not depend on the number of devices.
      on_step: called on the host after each step (a progress bar), by every device of a mapped axis; None traces no
        callback.

    Returns:
      `(unlearned variables, UnlearningInfo)`; parameters at least in float32. Source: OTBR step 1; with clean batches
      TSBD step 1.

    Raises:
      InputError: if there are other than `config.steps` batches, or a function of keys has no key.
    """
    make: Callable[[Any], Batch]
    steps: Any
    if isinstance(batches, Batch):
        if len(batches.labels) != config.steps:
            raise InputError(f"batches: expected {config.steps}, one a step, found {len(batches.labels)}")
        make, steps = (lambda batch: batch), batches
    elif key is None:
        raise InputError("key: expected a PRNG key for the batches, found None")
    else:
        make, steps = batches, jax.random.split(key, config.steps)
    start, state = split(variables)
    # The steps are too small for half precision: parameters move in float32 and are rounded where they are used.
    params = jax.tree.map(lambda p: p.astype(jnp.promote_types(p.dtype, jnp.float32)), start)
    # Ascent is descent on the negative loss; optax's momentum is PyTorch's (first buffer = first gradient).
    optimizer = optax.chain(optax.scale(-1.0), optax.sgd(config.learning_rate, momentum=config.momentum))

    def loss_fn(params, state, batch):
        rounded = jax.tree.map(lambda p, like: p.astype(like.dtype), params, start)
        logits, moved = network.train({"params": rounded, **state}, batch.images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), batch.labels)
        return jnp.mean(losses), jax.tree.map(lambda new, old: new.astype(old.dtype), moved, state)

    loss_and_grads = channels_last(jax.value_and_grad(loss_fn, has_aux=True))

    def step(carry, key_or_batch):
        params, state, optimizer_state = carry
        (loss, state), grads = loss_and_grads(params, state, make(key_or_batch))
        if axis_name is not None:
            loss, grads = jax.lax.pmean((loss, grads), axis_name)
            state = jax.tree.map(partial(_average, axis_name=axis_name), state)
        updates, optimizer_state = optimizer.update(grads, optimizer_state, params)
        if on_step is not None:
            jax.debug.callback(on_step)
        return (optax.apply_updates(params, updates), state, optimizer_state), loss

    carry = (params, state, optimizer.init(params))
    (params, state, _), losses = jax.lax.scan(step, carry, steps)
    return {"params": params, **state}, UnlearningInfo(losses)


def _average(statistic: jax.Array, *, axis_name: str) -> jax.Array:
    """The mean over devices; counters and the like are the same on all of them."""
    return jax.lax.pmean(statistic, axis_name) if jnp.issubdtype(statistic.dtype, jnp.inexact) else statistic


def random_unlearning(
    network: Network,
    variables: Variables,
    *,
    key: jax.Array,
    config: UnlearningConfig,
    axis_name: str | None = None,
    place: Callable[[Batch], Batch] = lambda batch: batch,
    on_step: Callable[[], None] | None = None,
) -> tuple[Variables, UnlearningInfo]:
    """Unlearning on noise that the devices make for themselves: no data at all (OTBR, step 1).

    Args:
      network: the functions of the network.
      variables: the suspicious network's variables.
      key: typed PRNG key.
      config: steps, batch size, learning rate, momentum.
      axis_name: see `unlearn`.
      place: says where a batch lies on the devices, for callers that shard under `jax.jit`.
      on_step: see `unlearn`.

    Returns:
      `(unlearned variables, UnlearningInfo)`.
    """
    noise = noise_batches(network, batch_size=config.batch_size, axis_name=axis_name)
    return unlearn(
        network, variables, lambda k: place(noise(k)), key=key, config=config, axis_name=axis_name, on_step=on_step
    )
