"""What defences share that fine-tune: the loop, its checks, the weight changes, and the outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.defenses.defense import Outcome, count_neurons, rounded
from otbr_jax.errors import InputError
from otbr_jax.plan import LongStep, Setup, Shown, Step, needs
from otbr_jax.steps import finetune as finetuning
from otbr_jax.steps.finetune import FinetuningConfig, MakeOptimizer, optimizer_of
from otbr_jax.steps.objective import Objective
from otbr_jax.steps.score import neuron_weight_changes
from otbr_jax.types import Batch, Network, Variables, split

MakeObjective = Callable[..., Objective]
"""`(setup, like, own, **needs) -> Objective`: `like` are the parameters in the network's own dtypes."""


class TuningSettings(NamedTuple):
    """The settings of a step of fine-tuning, and those of its objective."""

    finetuning: FinetuningConfig
    own: Any = None


class Tuning(NamedTuple):
    """The state of fine-tuning, and whether the network is fine-tuned at all."""

    progress: finetuning.Progress
    wanted: jax.Array


class Tuned(NamedTuple):
    """The fine-tuned network; `loss` and `accuracy` of its epochs `[epochs]`, NaN for those that were not run."""

    variables: Variables
    history: Mapping[str, jax.Array]


def variables_in(value: Any) -> Variables:
    """The network's variables in the value of a step, or in a plan's input."""
    variables: Variables = value.variables if hasattr(value, "variables") else value
    return variables


def tuning_step(
    name: str,
    config: FinetuningConfig,
    title: str,
    *,
    group: str,
    start: str = "victim",
    clean: str = "clean",
    more: Sequence[str] = (),
    detected: str = "",
    own: Any = None,
    objective: MakeObjective | None = None,
    optimizer: MakeOptimizer = optimizer_of,
    adapt: Callable[[Network], Network] = lambda network: network,
    by_epoch: bool = False,
    key: str | None = None,
) -> LongStep:
    """A step that fine-tunes a network epoch by epoch, and is saved in between; its value is `Tuned`.

    Args:
      name: of the step.
      config: the settings.
      title: a line for a progress bar.
      group: what settings call `config`, for errors, such as `ft.finetuning`.
      start: the step whose network is fine-tuned, or `victim`.
      clean: the step or input whose images it is fine-tuned on: a `Batch`, or a value with a `batch`.
      more: further steps whose values the objective takes, by name.
      detected: the step that flags a class or none, without which nothing is fine-tuned; empty to fine-tune always.
      own: settings of the objective.
      objective: what is minimised; by default the cross-entropy in training mode.
      optimizer: `(config, steps) -> optimizer`.
      adapt: `network -> network`, the one to fine-tune: how it prepares batches, and whether passes update the state.
      by_epoch: whether the objective also takes `epoch`, the number of epochs so far.
      key: the name that its key is derived from, see `Step.key`.
    """

    def begin(setup: Setup, settings: TuningSettings, *, start: Any, clean: Any, key: jax.Array, **rest: Any) -> Tuning:
        del key
        wanted = rest["detected"].detected.flagged if detected else jnp.bool_(True)
        progress = finetuning.start(
            variables_in(start),
            settings.finetuning,
            images=len(_batch(clean).labels),
            optimizer=optimizer,
            axis_name=setup.axis_name,
        )
        return Tuning(progress, wanted)

    def epoch(
        setup: Setup, settings: TuningSettings, state: Tuning, *, start: Any, clean: Any, key: jax.Array, **rest: Any
    ) -> tuple[Tuning, dict[str, jax.Array]]:
        if not settings.finetuning.epochs:  # traced, never run
            return state, {}
        like, values = variables_in(start), {name: rest[name] for name in more}
        if by_epoch:
            values["epoch"] = state.progress.epochs
        progress = finetuning.next_epoch(
            adapt(setup.network),
            like,
            state.progress,
            _batch(clean),
            key=key,
            config=settings.finetuning,
            objective=None if objective is None else objective(setup, split(like)[0], settings.own, **values),
            optimizer=optimizer,
            augment=setup.augment,
            axis_name=setup.axis_name,
        )
        last = state.progress.epochs
        shown = {"loss": jnp.mean(progress.info.loss[last]), "acc": jnp.mean(progress.info.accuracy[last])}
        return Tuning(progress, state.wanted), shown

    def check(settings: TuningSettings, value: Tuned) -> None:
        check_tuned(settings.finetuning, value, name=f"{group}.learning_rate")

    return LongStep(
        name,
        tuned_network,
        needs(*more, start=start, clean=clean) | ({"detected": detected} if detected else {}),
        TuningSettings(config, own),
        key=key,
        check=check,
        init=begin,
        body=epoch,
        done=lambda setup, settings, state: finetuning.ended(state.progress, settings.finetuning) | ~state.wanted,
        count=lambda state: state.progress.epochs,
        shown=Shown(title, total=config.epochs, unit="epoch"),
    )


def tuned_network(setup: Setup, settings: TuningSettings, state: Tuning) -> Tuned:
    """The network after the last epoch."""
    del setup, settings
    info = state.progress.info
    history = {"loss": jnp.mean(info.loss, axis=1), "accuracy": jnp.mean(info.accuracy, axis=1)}
    return Tuned(finetuning.variables_of(state.progress.tuning), history)


def check_tuned(settings: FinetuningConfig, tuned: Tuned, *, name: str) -> None:
    """Raises InputError, which calls the learning rate `name`, if fine-tuning diverged."""
    losses = np.asarray(tuned.history["loss"])
    bad = np.flatnonzero(np.isinf(losses))
    leaves = jax.tree.leaves(tuned.variables)
    if bad.size or not all(bool(np.isfinite(leaf).all()) for leaf in leaves):
        epoch = int(bad[0]) if bad.size else int(np.sum(np.isfinite(losses)))
        raise InputError(
            f"{name}: expected a finite loss, found {losses[min(epoch, len(losses) - 1)]} in "
            f"epoch {epoch + 1} of {settings.epochs}; lower it from {settings.learning_rate:g}"
        )


def check_images(clean: Batch | None, sizes: Mapping[str, int]) -> None:
    """Raises InputError if there are fewer clean images than a batch size, of `{setting: size}`; names the first."""
    assert clean is not None  # as `data` says
    for name, size in sizes.items():
        if len(clean.labels) < size:
            raise InputError(
                f"{name}: expected at most {len(clean.labels)}, as many as there are clean images, found {size}"
            )


def takes_clean(batch_sizes: Callable[[Any], Mapping[str, int]]) -> Callable[..., Mapping[str, Any]]:
    """The `Defense.given` of a defence that needs clean images, at least a batch of each of `batch_sizes`."""

    def given(config: Any, clean: Batch | None, seed: int) -> Mapping[str, Any]:
        del seed
        check_images(clean, batch_sizes(config))
        return {"clean": clean}

    return given


def changes_step(repaired: str) -> Step:
    """The step `changes`: the weight change of each neuron, `{layer name: [neurons]}`."""
    return Step("changes", _changes, needs("victim", repaired=repaired), shown=Shown("weight changes"))


def _changes(setup: Setup, settings: None, *, victim: Variables, repaired: Any, **_: Any) -> dict[str, jax.Array]:
    return neuron_weight_changes(victim, variables_in(repaired), setup.layers)


def plain_history(tuned: Tuned) -> dict[str, list[float]]:
    """Loss and accuracy of the epochs that were run, as plain values."""
    return {name: [rounded(value) for value in values if np.isfinite(value)] for name, values in tuned.history.items()}


def tuned_outcome(values: Mapping[str, Any], *, done: str, tuned: str = "finetuned", **fields: Any) -> Outcome:
    """The outcome of a defence that only fine-tunes, and whose plan ends in `changes_step`.

    Args:
      values: the steps' by name.
      done: what was done, in a clause; the number of epochs is appended.
      tuned: the step that holds the history.
      fields: of `Outcome`, in place of these.
    """
    history, changes = plain_history(values[tuned]), values["changes"]
    changed = {name: change > 0 for name, change in changes.items()}
    scored, count = count_neurons(changed)
    common: dict[str, Any] = {
        "choice": {"chosen_by": "config"},
        "did": "changed",
        "neurons": {"scored": scored, "changed": count},
        "touched": changed,
        "scores": changes,
        "scored": "Which neurons fine-tuning changed",
        "more": {"finetuning": history},
    }
    return Outcome(done=f"{done}, {len(history['loss'])} epochs", **common | fields)


def _batch(images: Any) -> Batch:
    return Batch(*(images.batch if hasattr(images, "batch") else images))
