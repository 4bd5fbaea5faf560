"""Training victims: one compiled program per epoch over a data set that lies on the devices."""

from __future__ import annotations

import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from otbr_jax.attacks.attack import Assets, InTraining
from otbr_jax.errors import InputError
from otbr_jax.metrics import Metrics
from otbr_jax.numerics.convolutions import channels_last
from otbr_jax.runs.devices import replicate, split_batch
from otbr_jax.runs.loop import rounds
from otbr_jax.settings import field, settings
from otbr_jax.steps.augment import augment
from otbr_jax.types import Network, Variables, split

PRECISIONS = ("auto", "float32", "bfloat16")


@settings("training")
class TrainingConfig:
    """SGD with momentum, weight decay and a cosine schedule."""

    epochs: int = field(default=30, at_least=1, doc="passes over the training set.")
    batch_size: int = field(
        default=64,
        at_least=1,
        doc="images per step, over all devices together; the last, incomplete batch of an epoch is left out.",
    )
    learning_rate: float = field(
        default=0.05, above=0, doc="at the start, or after the warm-up; falls to zero along a cosine."
    )
    warmup: float = field(
        default=0.0, at_least=0, below=1, doc="share of the steps in which the learning rate rises from zero."
    )
    momentum: float = field(default=0.9, at_least=0, below=1, doc="of SGD.")
    weight_decay: float = field(default=5e-4, at_least=0, doc="added to the gradients, as PyTorch's SGD does.")
    crop_padding: int = field(
        default=0, at_least=0, unit="pixels", doc="black border around an image before a random crop; 0 for no crop."
    )
    flip: bool = field(default=False, doc="whether half of the images are mirrored.")
    precision: str = field(
        default="auto",
        choices=PRECISIONS,
        doc="`float32`, `bfloat16` (weights, optimizer and all statistics stay float32), or `auto`: bfloat16 on GPUs "
        "and TPUs.",
    )
    measure_every: int = field(
        default=5,
        at_least=1,
        unit="epochs",
        doc="between two measurements of ACC and ASR; the last epoch is always measured.",
    )

    def measured_epochs(self) -> list[int]:
        """After which epochs, counted from 1, ACC and ASR are measured."""
        return sorted({*range(self.measure_every, self.epochs, self.measure_every), self.epochs})


class TrainingSet(NamedTuple):
    """What a network learns from, on the devices.

    Attributes:
      images: uint8 `[n, h, w, c]`.
      labels: int32 `[n]`.
      goals: int32 `[n]`, the labels that an attack which poisons while it trains wants.
    """

    images: jax.Array
    labels: jax.Array
    goals: jax.Array

    def axes(self) -> TrainingSet:
        """Of a stack's: 0 for each array that has an axis for the networks, None for one that they share."""
        return TrainingSet(*(0 if array.ndim in (5, 2) else None for array in self))  # type: ignore[arg-type]


class History(NamedTuple):
    """Measurements in training: loss `[epochs]`, and ACC and ASR `[measurements]` (ASR is NaN without a trigger)."""

    loss: np.ndarray
    acc: np.ndarray
    asr: np.ndarray


class Trained(NamedTuple):
    """A trained network.

    Attributes:
      variables: its variables.
      assets: the arrays of the attack, those that were trained with the network among them.
      history: loss, ACC and ASR in training.
      seconds: wall time, including an earlier process's whose state was resumed.
      images_per_second: the median over this process's epochs but its first, which compiles; None without a second.
    """

    variables: Variables
    assets: Assets
    history: History
    seconds: float
    images_per_second: float | None


class Training(NamedTuple):
    """The state of training: completed epochs, their seconds, what is trained, and the measurements."""

    done: np.int32
    spent: np.float32
    carry: Any
    history: History


def empty_history(config: TrainingConfig, stack: tuple[int, ...] = ()) -> History:
    """A history before training: NaN everywhere; `[..., networks]` of a stack."""
    measured = len(config.measured_epochs())
    return History(*(np.full((size, *stack), np.nan, np.float32) for size in (config.epochs, measured, measured)))


def train(
    network: Network,
    variables: Variables,
    data: TrainingSet,
    *,
    key: jax.Array,
    config: TrainingConfig,
    mesh: Mesh,
    assets: Assets | None = None,
    attack: InTraining | None = None,
    measure: Callable[[Variables, Assets], Metrics] | None = None,
    on_epoch: Callable[..., None] = lambda **shown: None,
    progress: pathlib.Path | None = None,
    save_every: float | None = None,
) -> Trained:
    """Trains a network on images that are on the devices as uint8.

    One compiled program runs a whole epoch: it shuffles, poisons, crops, flips and normalises on the devices. Several
    keys train a stack, see `stacking.train_stack`: all but what networks share of the data then has an axis for them.

    Args:
      network: the functions of the network.
      variables: where training starts.
      data: the training set.
      key: typed PRNG key: the order of the images, their augmentation, the attack's choices; `[networks]` for a stack.
      config: epochs, batch size, learning rate, ...
      mesh: devices that share each batch.
      assets: the arrays of the attack.
      attack: what the attack does in each step, None for one that has poisoned `data`.
      measure: `(variables, assets) -> Metrics`, called after the epochs `config.measured_epochs()`.
      on_epoch: called after each epoch with its mean loss and the last measurements (a progress bar).
      progress: where the state is saved every `save_every` seconds. A training that was stopped resumes from there,
        with the same result.
      save_every: seconds; see `loop.rounds`.

    Returns:
      The trained variables, the attack's assets (some attacks train theirs too), and the history.

    Raises:
      InputError: if there are fewer images than one batch, or the loss is not finite.
    """
    stack, count = key.shape, data.labels.shape[-1]
    check_batch_fits(config, images=count)
    steps = count // config.batch_size
    names = attack.trained if attack else ()
    trained_assets = {name: (assets or {})[name] for name in names}
    fixed_assets = {name: value for name, value in (assets or {}).items() if name not in trained_assets}
    fold_in = jax.vmap(jax.random.fold_in, (0, None)) if stack else jax.random.fold_in
    begin, epoch = programs(
        network, images=count, config=config, mesh=mesh, attack=attack, axes=data.axes() if stack else None
    )
    # A fresh copy on every device: the first call then compiles the program of all calls, and may reuse its memory.
    carry = begin(variables, trained_assets)
    measured_epochs, times = config.measured_epochs(), list[float]()

    def one_epoch(now: Training) -> tuple[Training, dict[str, float]]:
        started, index, history = time.monotonic(), int(now.done), now.history
        carry, loss = epoch(now.carry, fold_in(key, index), data, fixed_assets)
        history.loss[index] = loss
        times.append(time.monotonic() - started)
        if not np.isfinite(history.loss[index]).all():
            if progress is not None:
                shutil.rmtree(progress, ignore_errors=True)
            raise InputError(
                f"training.learning_rate: expected a finite loss, found {history.loss[index]} in epoch {index + 1} of "
                f"{config.epochs}; lower it from {config.learning_rate}"
            )
        if measure is not None and index + 1 in measured_epochs:
            place = measured_epochs.index(index + 1)
            metrics = measure({"params": carry[0], **carry[2]}, {**fixed_assets, **carry[1]})
            history.acc[place], history.asr[place] = metrics.acc, metrics.asr
        means = {name: values.reshape(len(values), -1).mean(1) for name, values in history._asdict().items()}
        last = {name: values[~np.isnan(values)][-1:] for name, values in means.items()}
        spent = np.float32(now.spent + time.monotonic() - started)
        shown = {name: float(value[0]) for name, value in last.items() if value.size}
        return Training(np.int32(index + 1), spent, carry, history), shown

    end = rounds(
        Training(np.int32(0), np.float32(0), carry, empty_history(config, stack)),
        one_epoch,
        done=lambda now: int(now.done) >= config.epochs,
        count=lambda now: int(now.done),
        progress=progress,
        save_every=save_every,
        place=lambda saved: saved._replace(carry=replicate(saved.carry, mesh)),
        on_round=on_epoch,
    )
    images_per_epoch = steps * config.batch_size * key.size
    speed = images_per_epoch / float(np.median(times[1:])) if len(times) > 1 else None
    carry = end.carry
    trained = {"params": carry[0], **carry[2]}
    return Trained(trained, {**fixed_assets, **carry[1]}, end.history, float(end.spent), speed)


def programs(
    network: Network, *, images: int, config: TrainingConfig, mesh: Mesh, attack: InTraining | None = None,
    axes: TrainingSet | None = None,
) -> tuple[Callable[..., Any], Callable[..., Any]]:  # fmt: skip
    """The two programs of training on so many images, which devices share.

    `begin(variables, trained assets) -> carry`; and `epoch(carry, key, data, other assets) -> (carry, mean loss)`. A
    carry is `(params, trained assets, state, optimizer state, that of the assets)`. With `axes` of the data they train
    a stack of networks, under one `jax.vmap`; see `TrainingSet.axes`.
    """
    steps = images // config.batch_size
    optimizer = _optimizer(config, steps)
    attack_optimizer = attack.optimizer(config.epochs * steps) if attack else optax.identity()
    dtype, copied = compute_dtype(config.precision, mesh), NamedSharding(mesh, PartitionSpec())

    def begin(variables: Variables, own: Assets) -> Any:
        params, state = split(variables)
        return jax.tree.map(jnp.copy, (params, own, state, optimizer.init(params), attack_optimizer.init(own)))

    def loss_fn(trainable: Any, state: Any, batch: TrainingSet, fixed: Assets, key: jax.Array) -> tuple[jax.Array, Any]:
        params, own = trainable
        attack_key, augment_key = jax.random.split(key)
        images, labels, extra = batch.images, batch.labels, jnp.zeros(())
        if attack is not None:
            unit = images.astype(jnp.float32) / 255
            images, labels, extra = attack.poison({**fixed, **own}, unit, labels, batch.goals, attack_key)
        images = augment(images, key=augment_key, crop_padding=config.crop_padding, flip=config.flip)
        params = jax.tree.map(lambda p: p.astype(dtype), params)
        logits, new_state = network.train({"params": params, **state}, network.prepare(images).astype(dtype))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
        return jnp.mean(losses) + extra, jax.tree.map(lambda new, old: new.astype(old.dtype), new_state, state)

    loss_and_grads = channels_last(jax.value_and_grad(loss_fn, has_aux=True))

    def epoch(carry: Any, key: jax.Array, data: TrainingSet, fixed: Assets) -> tuple[Any, jax.Array]:
        order = jax.random.permutation(key, images)[: steps * config.batch_size]
        keys = jax.random.split(jax.random.fold_in(key, 2), steps)  # 0 and 1 are the shuffle's own

        def step(carry: Any, inputs: Any) -> tuple[Any, jax.Array]:
            (chosen, step_key), (params, own, state, opt_state, own_opt_state) = inputs, carry
            batch = split_batch(TrainingSet(*(array[chosen] for array in data)), mesh)
            (loss, state), (grads, own_grads) = loss_and_grads((params, own), state, batch, fixed, step_key)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            own_updates, own_opt_state = attack_optimizer.update(own_grads, own_opt_state, own)
            params, own = optax.apply_updates(params, updates), optax.apply_updates(own, own_updates)
            return (params, own, state, opt_state, own_opt_state), loss

        carry, losses = jax.lax.scan(step, carry, (order.reshape(steps, config.batch_size), keys))
        return carry, jnp.mean(losses)

    both: tuple[Callable[..., Any], Callable[..., Any]] = (begin, epoch)
    if axes is not None:
        both = jax.vmap(begin), jax.vmap(epoch, in_axes=(0, 0, axes, 0))
    return jax.jit(both[0], out_shardings=copied), jax.jit(both[1], out_shardings=copied, donate_argnums=0)


def check_batch_fits(config: TrainingConfig, *, images: int) -> None:
    """Raises InputError if there are fewer images than one batch."""
    if images < config.batch_size:
        raise InputError(f"training.batch_size: expected at most {images} images, found {config.batch_size}")


def _optimizer(config: TrainingConfig, steps: int) -> optax.GradientTransformation:
    total = config.epochs * steps
    warmup = min(round(config.warmup * total), total - 1)
    schedule: optax.Schedule = optax.cosine_decay_schedule(config.learning_rate, total - warmup)
    if warmup:
        rising = optax.linear_schedule(0.0, config.learning_rate, warmup)
        schedule = optax.join_schedules([rising, schedule], [warmup])
    return optax.chain(optax.add_decayed_weights(config.weight_decay), optax.sgd(schedule, momentum=config.momentum))


def compute_dtype(precision: str, mesh: Mesh) -> Any:
    """The dtype that a `TrainingConfig.precision` means on these devices."""
    if precision == "auto":
        precision = "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"
    return jnp.dtype(precision)
