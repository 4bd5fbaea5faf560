"""Activeness-aware fine-tuning: descent on the loss and on the norm of its gradient.

In a training loop of one's own, `activeness_aware` goes in front of any optax optimiser:

    optimizer = optax.chain(activeness_aware(radius=0.05, alpha=0.7), optax.sgd(0.01, momentum=0.9))
    updates, state = optimizer.update(grads, state, params, grad_fn=grad_fn)

where `grad_fn(params)` gives the gradients of the same batch at other parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from otbr_jax.errors import InputError
from otbr_jax.numerics.collectives import per_device
from otbr_jax.settings import field, settings
from otbr_jax.steps.objective import Objective, cross_entropy, float32_params, training_state
from otbr_jax.steps.unlearn import epoch_draws
from otbr_jax.types import Augment, Batch, Network, Variables, split, unchanged

SCHEDULES = ("constant", "cosine")


@settings("finetuning")
class FinetuningConfig:
    """Activeness-aware fine-tuning as published (TSBD, step 3)."""

    epochs: int = field(default=20, at_least=0, doc="passes over the clean images.")
    batch_size: int = field(
        default=256,
        at_least=1,
        doc="images per step, over all devices together; an epoch's last, incomplete batch is left out.",
    )
    learning_rate: float = field(default=0.01, above=0, doc="of SGD.")
    momentum: float = field(default=0.9, at_least=0, below=1, doc="of SGD.")
    weight_decay: float = field(default=0.0, at_least=0, doc="of SGD, added to the gradient, of all parameters.")
    radius: float = field(
        default=0.05, above=0, doc="the paper's r, the length of the step along the gradient, for each tensor."
    )
    alpha: float = field(
        default=0.7,
        at_least=0,
        at_most=1,
        doc="weight of the gradient after that step; 0 for ordinary fine-tuning.",
    )
    schedule: str = field(
        default="constant",
        choices=SCHEDULES,
        doc="of the learning rate: as published `constant`, or `cosine` down to zero.",
    )
    patience: int = field(
        default=0,
        at_least=0,
        doc="epochs without a new minimum of the mean loss after which fine-tuning ends; 0, as published, for never.",
    )

    def steps(self, images: int, *, batch_size: int = 0) -> int:
        """The number of steps for so many images; `batch_size` is by default the setting's."""
        return self.epochs * (images // (batch_size or self.batch_size))


def activeness_aware(*, radius: float = 0.05, alpha: float = 0.7) -> optax.GradientTransformationExtraArgs:
    """Turns gradients of a loss L into those of L + c ||grad L||, which keeps neurons from becoming active again.

    With `g1 = grad L(theta)` and `g2 = grad L(theta + radius g1 / ||g1||)`, the norm taken tensor by tensor, updates
    become `(1 - alpha) g1 + alpha g2`: to first order a step on `L + alpha radius ||grad L||`. It holds no state.

    Args:
      radius: the paper's r, above 0; in the units of the parameters.
      alpha: weight of `g2`, in [0, 1]; with 0 gradients stay as they are and `grad_fn` is not called.

    Returns:
      A transformation whose `update` takes `grad_fn`, `params -> gradients` on the batch that the updates are from, as
      one more keyword; `optax.chain` passes it on. A tensor without a gradient is not changed.

    Raises:
      InputError: if `update` is called without `params` or `grad_fn`.

    Source: TSBD section 3.4; the approximation is that of Zhao et al., arXiv 2202.03599.
    """
    FinetuningConfig(radius=radius, alpha=alpha)

    def init(params: Any) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None, *, grad_fn: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        if alpha == 0:
            return updates, state
        if params is None or grad_fn is None:
            missing = "params" if params is None else "grad_fn"
            raise InputError(f"{missing}: activeness_aware expected it in update(grads, state, params, grad_fn=...)")
        second = grad_fn(jax.tree.map(lambda p, g: p + radius * _direction(g), params, updates))
        return jax.tree.map(lambda g1, g2: (1 - alpha) * g1 + alpha * g2, updates, second), state

    return optax.GradientTransformationExtraArgs(init, update)


def _direction(gradient: jax.Array) -> jax.Array:
    """The gradient of one tensor scaled to length 1; zero if it is zero."""
    # Scaled first: squares of small gradients leave float32.
    largest = jnp.max(jnp.abs(gradient))
    scaled = gradient / jnp.where(largest > 0, largest, 1.0)
    norm = jnp.sqrt(jnp.sum(scaled**2))
    return scaled / jnp.where(norm > 0, norm, 1.0)


class Finetuning(NamedTuple):
    """The state of a fine-tuning: parameters (at least float32), state, and the optimiser's state."""

    params: Any
    state: Any
    opt_state: Any


class FinetuningInfo(NamedTuple):
    """`loss` and `accuracy` of each step's batch in training mode, before the step; `[steps]` or `[epochs, steps]`."""

    loss: jax.Array
    accuracy: jax.Array


class Progress(NamedTuple):
    """A fine-tuning after some of its epochs.

    Attributes:
      tuning: its state.
      info: `[epochs, steps]`, NaN for epochs that have not run.
      epochs: number of epochs that have run.
    """

    tuning: Finetuning
    info: FinetuningInfo
    epochs: jax.Array


MakeOptimizer = Callable[[FinetuningConfig, int], optax.GradientTransformationExtraArgs]
"""`(config, steps) -> optimizer`."""

StepFn = Callable[[Finetuning, Batch], tuple[Finetuning, FinetuningInfo]]


def learning_rate_of(config: FinetuningConfig, steps: int) -> Any:
    """The learning rate, or its schedule over so many steps."""
    if config.schedule == "cosine":
        return optax.cosine_decay_schedule(config.learning_rate, max(1, steps))
    return config.learning_rate


def sgd_of(config: FinetuningConfig, steps: int) -> optax.GradientTransformation:
    """SGD as configured, without `activeness_aware`."""
    sgd = optax.sgd(learning_rate_of(config, steps), momentum=config.momentum)
    return optax.chain(optax.add_decayed_weights(config.weight_decay), sgd) if config.weight_decay else sgd


def optimizer_of(config: FinetuningConfig, steps: int) -> optax.GradientTransformationExtraArgs:
    """SGD behind `activeness_aware`; `steps` is their total number, which only a cosine schedule uses."""
    return optax.chain(activeness_aware(radius=config.radius, alpha=config.alpha), sgd_of(config, steps))


def begin(variables: Variables, optimizer: optax.GradientTransformation) -> Finetuning:
    """The start of a fine-tuning."""
    params, state = split(variables)
    params = float32_params(params)
    return Finetuning(params, state, optimizer.init(params))


def variables_of(tuning: Finetuning) -> Variables:
    """The network's current variables; parameters at least in float32."""
    return {"params": tuning.params, **tuning.state}


def step_fn(
    network: Network,
    variables: Variables,
    optimizer: optax.GradientTransformationExtraArgs,
    *,
    objective: Objective | None = None,
    axis_name: str | None = None,
) -> StepFn:
    """One step of fine-tuning, `(Finetuning, batch) -> (Finetuning, FinetuningInfo)`.

    Both gradients are taken in training mode, and the state updates of these passes are dropped. One more training-mode
    pass at the new parameters updates the state.

    Args:
      network: the functions of the network.
      variables: only their dtypes are used, in which the network computes.
      optimizer: any; it is called with `grad_fn`.
      objective: the loss and its gradients; by default the cross-entropy.
      axis_name: see `objective.cross_entropy`.
    """
    like, _ = split(variables)
    objective = cross_entropy(network, like, axis_name=axis_name) if objective is None else objective
    update_state = training_state(network, like, axis_name=axis_name)

    def step(carry: Finetuning, batch: Batch) -> tuple[Finetuning, FinetuningInfo]:
        evaluation, grads = objective(carry.params, carry.state, batch)
        updates, opt_state = optimizer.update(
            grads, carry.opt_state, carry.params, grad_fn=lambda params: objective(params, carry.state, batch)[1]
        )
        params = optax.apply_updates(carry.params, updates)
        state = update_state(params, carry.state, batch)
        return Finetuning(params, state, opt_state), FinetuningInfo(evaluation.loss, evaluation.accuracy)

    return step


def finetune_epoch(
    network: Network,
    step: StepFn,
    carry: Finetuning,
    clean: Batch,
    *,
    key: jax.Array,
    batch_size: int,
    augment: Augment = unchanged,
) -> tuple[Finetuning, FinetuningInfo]:
    """One pass over clean images `[n, h, w, c]` with labels `[n]`, in a random order.

    Args:
      network: only its `prepare` is used.
      step: from `step_fn`.
      carry: the state so far.
      clean: the images as the network's `prepare` takes them; on a mapped axis each device's own part.
      key: typed PRNG key of the order of the images and of their augmentation.
      batch_size: images per step (of this device).
      augment: `(images, key) -> images`, before the network's `prepare`.

    Raises:
      InputError: if there are fewer images than one batch.
    """

    def one(carry: Finetuning, drawn: Any) -> tuple[Finetuning, FinetuningInfo]:
        chosen, step_key = drawn
        return step(carry, Batch(network.prepare(augment(clean.images[chosen], step_key)), clean.labels[chosen]))

    return jax.lax.scan(one, carry, epoch_draws(len(clean.labels), batch_size, key=key))


def start(
    variables: Variables,
    config: FinetuningConfig,
    *,
    images: int,
    optimizer: MakeOptimizer = optimizer_of,
    axis_name: str | None = None,
) -> Progress:
    """The progress before the first epoch over so many images; raises InputError as `finetune`."""
    size = per_device(config.batch_size, axis_name, name="finetuning.batch_size")
    steps = config.steps(images, batch_size=size)
    not_run = jnp.full((config.epochs, images // size), jnp.nan)
    tuning = begin(variables, optimizer(config, steps))
    return Progress(tuning, FinetuningInfo(not_run, not_run), jnp.int32(0))


def next_epoch(
    network: Network,
    like: Variables,
    progress: Progress,
    clean: Batch,
    *,
    key: jax.Array,
    config: FinetuningConfig,
    objective: Objective | None = None,
    optimizer: MakeOptimizer = optimizer_of,
    augment: Augment = unchanged,
    axis_name: str | None = None,
) -> Progress:
    """One more epoch, with the key `fold_in(key, epochs)`. Arguments as of `finetune`; for `like` see `step_fn`."""
    size = per_device(config.batch_size, axis_name, name="finetuning.batch_size")
    transformation = optimizer(config, config.steps(len(clean.labels), batch_size=size))
    step = step_fn(network, like, transformation, objective=objective, axis_name=axis_name)
    own = jax.random.fold_in(key, progress.epochs)
    tuning, epoch = finetune_epoch(network, step, progress.tuning, clean, key=own, batch_size=size, augment=augment)
    info = FinetuningInfo(*(all_.at[progress.epochs].set(new) for all_, new in zip(progress.info, epoch, strict=True)))
    return Progress(tuning, info, progress.epochs + 1)


def ended(progress: Progress, config: FinetuningConfig) -> jax.Array:
    """Whether fine-tuning has ended: all epochs have run, the loss is not finite, or `config.patience` ran out."""
    count, losses = progress.epochs, jnp.mean(progress.info.loss, axis=1)
    if not config.epochs:
        return jnp.bool_(True)
    started = count > 0
    over = (count >= config.epochs) | (started & ~jnp.isfinite(losses[count - 1]))
    if config.patience:
        least = jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses))
        over |= started & (count - 1 - least >= config.patience)
    return over


def finetune(
    network: Network,
    variables: Variables,
    clean: Batch,
    *,
    key: jax.Array,
    config: FinetuningConfig,
    objective: Objective | None = None,
    optimizer: MakeOptimizer = optimizer_of,
    augment: Augment = unchanged,
    axis_name: str | None = None,
) -> tuple[Variables, FinetuningInfo]:
    """All epochs of activeness-aware fine-tuning (TSBD, step 3). Guarantee: touches no data but `clean`.

    Args: as `finetune_epoch` and `step_fn`, with `optimizer(config, steps)` in place of an optimiser; the key of epoch
      `i` is `fold_in(key, i)`.

    Returns:
      `(variables, FinetuningInfo)`, the latter `[epochs, steps]`, NaN for epochs after an early end; parameters at
      least in float32.

    Raises:
      InputError: if there are fewer images than one batch, or devices cannot share a batch evenly.
    """
    progress = start(variables, config, images=len(clean.labels), optimizer=optimizer, axis_name=axis_name)
    if config.epochs:
        progress = jax.lax.while_loop(
            lambda progress: ~ended(progress, config),
            lambda progress: next_epoch(
                network, variables, progress, clean, key=key, config=config, objective=objective, optimizer=optimizer,
                augment=augment, axis_name=axis_name,
            ),
            progress,
        )  # fmt: skip
    return variables_of(progress.tuning), progress.info
