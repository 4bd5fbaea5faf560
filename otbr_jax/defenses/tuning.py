"""What all defences share that fine-tune with clean images: the loop, its checks, and what is said of it."""

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
"""`(setup, like, own, **needs) -> Objective`: `like` are parameters in the dtypes that the network computes in."""


class TuningSettings(NamedTuple):
    """What a step of fine-tuning is given: how, and the settings of its objective."""

    finetuning: FinetuningConfig
    own: Any = None


class Tuning(NamedTuple):
    """A fine-tuning on its way, and whether there is anything to do."""

    progress: finetuning.Progress
    wanted: jax.Array


class Tuned(NamedTuple):
    """The fine-tuned network; `loss` and `accuracy` of its epochs `[epochs]`, NaN for those that were not needed."""

    variables: Variables
    history: Mapping[str, jax.Array]


def variables_in(value: Any) -> Variables:
    """The network's variables in what a step made, or in what is given."""
    found: Variables = value.variables if hasattr(value, "variables") else value
    return found


def tuning_step(
    name: str,
    config: FinetuningConfig,
    title: str,
    *,
    group: str,
    start: str = "victim",
    clean: str = "clean",
    more: Sequence[str] = (),
    judged: str = "",
    own: Any = None,
    objective: MakeObjective | None = None,
    optimizer: MakeOptimizer = optimizer_of,
    seen: Callable[[Network], Network] = lambda network: network,
    by_epoch: bool = False,
    key: str | None = None,
) -> LongStep:
    """A step that fine-tunes a network epoch by epoch, and is saved on the way; its value is `Tuned`.

    Args:
      name: of the step.
      config: how.
      title: a line for a progress bar.
      group: what settings call `config`, for errors, such as `ft.finetuning`.
      start: the step whose network it begins with, or `victim`.
      clean: the step or the given whose images it sees: a `Batch`, or a value with a `batch`.
      more: further steps that the objective is given, by name.
      judged: the step that says whether anything is to be done; empty if something always is.
      own: settings of the objective.
      objective: what is descended; by default the cross-entropy in training mode.
      optimizer: `(config, steps) -> optimizer`.
      seen: the network that the loop is given: how it prepares batches, and whether a pass moves the state.
      by_epoch: whether the objective is also given `epoch`, how many there were.
      key: the name that its key is derived from, see `Step.key`.
    """

    def begin(setup: Setup, settings: TuningSettings, *, start: Any, clean: Any, key: jax.Array, **rest: Any) -> Tuning:
        del key
        wanted = rest["judged"].detected.flagged if judged else jnp.bool_(True)
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
        like, given = variables_in(start), {name: rest[name] for name in more}
        if by_epoch:
            given["epoch"] = state.progress.epochs
        progress = finetuning.next_epoch(
            seen(setup.network),
            like,
            state.progress,
            _batch(clean),
            key=key,
            config=settings.finetuning,
            objective=None if objective is None else objective(setup, split(like)[0], settings.own, **given),
            optimizer=optimizer,
            augment=setup.augment,
            axis_name=setup.axis_name,
        )
        last = state.progress.epochs
        shown = {"loss": jnp.mean(progress.info.loss[last]), "acc": jnp.mean(progress.info.accuracy[last])}
        return Tuning(progress, state.wanted), shown

    def check(settings: TuningSettings, found: Tuned) -> None:
        check_tuned(settings.finetuning, found, name=f"{group}.learning_rate")

    return LongStep(
        name,
        tuned,
        needs(*more, start=start, clean=clean) | ({"judged": judged} if judged else {}),
        TuningSettings(config, own),
        key=key,
        check=check,
        init=begin,
        body=epoch,
        done=lambda setup, settings, state: finetuning.ended(state.progress, settings.finetuning) | ~state.wanted,
        count=lambda state: state.progress.epochs,
        shown=Shown(title, total=config.epochs, unit="epoch"),
    )


def tuned(setup: Setup, settings: TuningSettings, state: Tuning) -> Tuned:
    """The network after the last epoch."""
    del setup, settings
    info = state.progress.info
    history = {"loss": jnp.mean(info.loss, axis=1), "accuracy": jnp.mean(info.accuracy, axis=1)}
    return Tuned(finetuning.variables_of(state.progress.tuning), history)


def check_tuned(settings: FinetuningConfig, found: Tuned, *, name: str) -> None:
    """Raises InputError, which calls the learning rate `name`, if fine-tuning diverged."""
    losses = np.asarray(found.history["loss"])
    bad = np.flatnonzero(np.isinf(losses))
    leaves = jax.tree.leaves(found.variables)
    if bad.size or not all(bool(np.isfinite(leaf).all()) for leaf in leaves):
        epoch = int(bad[0]) if bad.size else int(np.sum(np.isfinite(losses)))
        raise InputError(
            f"{name}: expected a finite loss, found {losses[min(epoch, len(losses) - 1)]} in "
            f"epoch {epoch + 1} of {settings.epochs}; lower it from {settings.learning_rate:g}"
        )


def check_images(clean: Batch | None, sizes: Mapping[str, int]) -> None:
    """Raises InputError that names the first batch size `{setting: size}` that there are too few clean images for."""
    assert clean is not None  # what `data` asks for
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
    """The step `changes`: by how much each neuron's weights moved, `{layer name: [neurons]}`."""
    return Step("changes", _changes, needs("victim", repaired=repaired), shown=Shown("what moved"))


def _changes(setup: Setup, settings: None, *, victim: Variables, repaired: Any, **_: Any) -> dict[str, jax.Array]:
    return neuron_weight_changes(victim, variables_in(repaired), setup.layers)


def plain_history(found: Tuned) -> dict[str, list[float]]:
    """Loss and accuracy of the epochs that there were, as plain values."""
    return {name: [rounded(value) for value in values if np.isfinite(value)] for name, values in found.history.items()}


def tuned_outcome(values: Mapping[str, Any], *, done: str, tuned: str = "finetuned", **fields: Any) -> Outcome:
    """The outcome of a defence that only fine-tunes, whose plan ends in `changes_step`.

    Args:
      values: the steps' by name.
      done: what was done, in a clause; the number of epochs goes behind it.
      tuned: the step that holds the history.
      fields: of `Outcome`, in place of these.
    """
    history, changes = plain_history(values[tuned]), values["changes"]
    moved = {name: change > 0 for name, change in changes.items()}
    scored, touched = count_neurons(moved)
    common: dict[str, Any] = {
        "choice": {"chosen_by": "config"},
        "did": "moved",
        "neurons": {"scored": scored, "moved": touched},
        "touched": moved,
        "scores": changes,
        "scored": "Which neurons fine-tuning moved",
        "more": {"finetuning": history},
    }
    return Outcome(done=f"{done}, {len(history['loss'])} epochs", **common | fields)


def _batch(images: Any) -> Batch:
    return Batch(*(images.batch if hasattr(images, "batch") else images))
