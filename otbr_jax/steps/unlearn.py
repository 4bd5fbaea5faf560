"""Unlearning: gradient *ascent* on the cross-entropy, whose weight changes reveal backdoor neurons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from otbr_jax.errors import InputError
from otbr_jax.numerics.collectives import per_device
from otbr_jax.settings import field, settings
from otbr_jax.steps.objective import Evaluation, cross_entropy, float32_params
from otbr_jax.types import Augment, Batch, BatchFn, Network, Variables, split, unchanged


@settings("unlearning")
class UnlearningConfig:
    """Random unlearning as published (OTBR, step 1)."""

    steps: int = field(default=20, at_least=1, doc="number of ascent steps.")
    batch_size: int = field(default=256, at_least=1, doc="images per step, over all devices together.")
    learning_rate: float = field(default=1e-4, above=0, doc="of SGD without weight decay.")
    momentum: float = field(default=0.9, at_least=0, below=1, doc="of SGD.")


@settings("unlearning")
class CleanUnlearningConfig:
    """Clean unlearning as published (TSBD, step 1): epochs of ascent down to chance level."""

    max_epochs: int = field(default=100, at_least=1, doc="passes over the clean images, at most.")
    batch_size: int = field(
        default=256,
        at_least=1,
        doc="images per step, over all devices together; an epoch's last, incomplete batch is left out.",
    )
    learning_rate: float = field(default=1e-4, above=0, doc="of SGD without weight decay.")
    momentum: float = field(default=0.9, at_least=0, below=1, doc="of SGD.")
    stop_accuracy: float = field(
        default=0.0,
        at_least=0,
        below=1,
        doc="unlearning ends with the first epoch whose accuracy is at most this; 0 for chance level, `1 / classes`.",
    )


class UnlearningInfo(NamedTuple):
    """Loss and observations of every step.

    Attributes:
      loss: `[steps]`, mean cross-entropy of each step's batch, before the step.
      observed: results of `observe` on each step's gradients, a leading axis `[steps]` on every array; None without.
    """

    loss: jax.Array
    observed: Any = None


class CleanUnlearningInfo(NamedTuple):
    """Loss and accuracy of every epoch; NaN for epochs that have not run.

    Attributes:
      loss: `[max_epochs]`, mean cross-entropy of the epoch's batches, each before its step.
      accuracy: `[max_epochs]`, of the same batches, in [0, 1].
      epochs: number of epochs that have run.
      reached: whether the accuracy of the last epoch is at most the one to stop at.
    """

    loss: jax.Array
    accuracy: jax.Array
    epochs: jax.Array
    reached: jax.Array


def noise_batches(network: Network, *, batch_size: int, axis_name: str | None = None) -> BatchFn:
    """Batches of uniform-[0, 1) noise with uniformly random labels (OTBR, step 1).

    Every image comes from a key of its own, `fold_in(key, index)`, so that the noise does not depend on how many
    devices share the batch: each device makes only its own part.

    Args:
      network: gives the shape of the images and the number of classes.
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
        share = per_device(batch_size, axis_name, name="unlearning.batch_size")
        indices = jnp.arange(share)
        if axis_name is not None:
            indices += jax.lax.axis_index(axis_name) * share
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
    observe: Callable[[Any], Any] | None = None,
    on_step: Callable[[], None] | None = None,
) -> tuple[Variables, UnlearningInfo]:
    """Gradient ascent on the cross-entropy of `batches`, in training mode, over all parameters.

    Guarantee: touches no data but `batches`.

    Args:
      network: the functions of the network.
      variables: the (suspicious) network's variables.
      batches: `key -> Batch`, called once a step with a key of its own; or the batches themselves, images
        `[steps, n, h, w, c]` and labels `[steps, n]`.
      key: typed PRNG key, which only a function of keys needs; the same on all devices of `axis_name`.
      config: steps, learning rate, momentum (`batch_size` is used by whoever makes `batches`).
      axis_name: mapped axis over which gradients and losses are averaged; the network's BatchNorm must average
        its statistics over the same axis if results must not depend on the number of devices.
      observe: `gradients -> pytree`, of the cross-entropy with respect to the parameters at each step.
      on_step: called on the host after each step (a progress bar), by every device of a mapped axis; None traces no
        callback.

    Returns:
      `(unlearned variables, UnlearningInfo)`; parameters at least in float32. Source: OTBR step 1; with clean batches
      what TSBD step 1 does within an epoch.

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
    params, state = split(variables)
    ascend = _ascent(network, params, config, axis_name)

    def step(carry: _Ascending, key_or_batch: Any) -> tuple[_Ascending, Any]:
        carry, evaluation, grads = ascend(carry, make(key_or_batch))
        if on_step is not None:
            jax.debug.callback(on_step)
        return carry, (evaluation.loss, None if observe is None else observe(grads))

    carry, (losses, observed) = jax.lax.scan(step, _begin(params, state, config), steps)
    return {"params": carry.params, **carry.state}, UnlearningInfo(losses, observed)


class _Ascending(NamedTuple):
    params: Any
    state: Any
    opt_state: Any


def _optimizer(config: UnlearningConfig | CleanUnlearningConfig) -> optax.GradientTransformation:
    # Ascent is descent on the negative loss; optax's momentum is PyTorch's (first buffer = first gradient).
    return optax.chain(optax.scale(-1.0), optax.sgd(config.learning_rate, momentum=config.momentum))


def _begin(params: Any, state: Any, config: UnlearningConfig | CleanUnlearningConfig) -> _Ascending:
    params = float32_params(params)
    return _Ascending(params, state, _optimizer(config).init(params))


def _ascent(
    network: Network, like: Any, config: UnlearningConfig | CleanUnlearningConfig, axis_name: str | None
) -> Callable[[_Ascending, Batch], tuple[_Ascending, Evaluation, Any]]:
    """One step up: `(carry, batch) -> (carry, evaluation before the step, gradients of the cross-entropy)`."""
    objective, optimizer = cross_entropy(network, like, axis_name=axis_name), _optimizer(config)

    def ascend(carry: _Ascending, batch: Batch) -> tuple[_Ascending, Evaluation, Any]:
        evaluation, grads = objective(carry.params, carry.state, batch)
        updates, opt_state = optimizer.update(grads, carry.opt_state, carry.params)
        return _Ascending(optax.apply_updates(carry.params, updates), evaluation.state, opt_state), evaluation, grads

    return ascend


def clean_unlearning(
    network: Network,
    variables: Variables,
    clean: Batch,
    *,
    key: jax.Array,
    config: CleanUnlearningConfig,
    augment: Augment = unchanged,
    axis_name: str | None = None,
    on_epoch: Callable[..., None] | None = None,
) -> tuple[Variables, CleanUnlearningInfo]:
    """Gradient ascent on clean images, epoch after epoch, until the accuracy is at chance level (TSBD, step 1).

    The accuracy is that of an epoch's batches in training mode, each before its step, at no extra cost. Guarantee:
    touches no data but `clean`.

    Args:
      network: the functions of the network.
      variables: the suspicious network's variables.
      clean: all clean images `[n, h, w, c]` as the network's `prepare` takes them, and labels `[n]`; on a mapped axis
        each device's own part, of equal size.
      key: typed PRNG key of the order of the images and of their augmentation.
      config: epochs, batch size, learning rate, momentum.
      augment: `(images, key) -> images`, before the network's `prepare`.
      axis_name: see `unlearn`.
      on_epoch: called on the host as `on_epoch(loss=..., acc=...)` after each epoch; None traces no callback.

    Returns:
      `(unlearned variables, CleanUnlearningInfo)`; parameters at least in float32.

    Raises:
      InputError: if there are fewer images than one batch, or devices cannot share a batch evenly.
    """
    size = per_device(config.batch_size, axis_name, name="unlearning.batch_size")
    params, state = split(variables)
    ascend = _ascent(network, params, config, axis_name)
    stop = config.stop_accuracy or 1 / network.num_classes

    def epoch(carry: _Ascending, key: jax.Array) -> tuple[_Ascending, jax.Array, jax.Array]:
        def step(carry: _Ascending, drawn: Any) -> tuple[_Ascending, Any]:
            chosen, step_key = drawn
            batch = Batch(network.prepare(augment(clean.images[chosen], step_key)), clean.labels[chosen])
            carry, evaluation, _ = ascend(carry, batch)
            return carry, (evaluation.loss, evaluation.accuracy)

        draws = epoch_draws(len(clean.labels), size, key=key)
        carry, (losses, accuracies) = jax.lax.scan(step, carry, draws)
        return carry, jnp.mean(losses), jnp.mean(accuracies)

    def continues(loop: Any) -> jax.Array:
        _, info = loop
        # A loss that is not finite ends it, too: there is nothing left to unlearn.
        diverged = (info.epochs > 0) & ~jnp.isfinite(info.loss[info.epochs - 1])
        return (info.epochs < config.max_epochs) & ~info.reached & ~diverged

    def body(loop: Any) -> Any:
        carry, info = loop
        carry, loss, accuracy = epoch(carry, jax.random.fold_in(key, info.epochs))
        if on_epoch is not None:
            jax.debug.callback(lambda loss, acc: on_epoch(loss=float(loss), acc=float(acc)), loss, accuracy)
        reached = (accuracy <= stop) & jnp.isfinite(loss)
        losses, accuracies = info.loss.at[info.epochs].set(loss), info.accuracy.at[info.epochs].set(accuracy)
        return carry, CleanUnlearningInfo(losses, accuracies, info.epochs + 1, reached)

    not_run = jnp.full(config.max_epochs, jnp.nan)
    start = CleanUnlearningInfo(not_run, not_run, jnp.int32(0), jnp.bool_(False))
    carry, info = jax.lax.while_loop(continues, body, (_begin(params, state, config), start))
    return {"params": carry.params, **carry.state}, info


def epoch_draws(count: int, batch_size: int, *, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One epoch's batches: indices int `[steps, batch_size]` in a random order, and a key for each step.

    An incomplete last batch is left out. Raises InputError if there are fewer images than one batch.
    """
    if count < batch_size:
        raise InputError(f"batch_size: expected at most {count}, as many as there are clean images, found {batch_size}")
    steps = count // batch_size
    order = jax.random.permutation(key, count)[: steps * batch_size]
    return order.reshape(steps, batch_size), jax.random.split(jax.random.fold_in(key, 2), steps)


def random_unlearning(
    network: Network,
    variables: Variables,
    *,
    key: jax.Array,
    config: UnlearningConfig,
    axis_name: str | None = None,
    on_step: Callable[[], None] | None = None,
) -> tuple[Variables, UnlearningInfo]:
    """Unlearning on noise, without any data (OTBR, step 1); devices make the noise themselves.

    Args:
      network: the functions of the network.
      variables: the suspicious network's variables.
      key: typed PRNG key.
      config: steps, batch size, learning rate, momentum.
      axis_name: see `unlearn`.
      on_step: see `unlearn`.

    Returns:
      `(unlearned variables, UnlearningInfo)`.
    """
    noise = noise_batches(network, batch_size=config.batch_size, axis_name=axis_name)
    return unlearn(network, variables, noise, key=key, config=config, axis_name=axis_name, on_step=on_step)
