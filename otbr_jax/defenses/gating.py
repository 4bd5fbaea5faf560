"""What defences share that learn masks on normalisations: their scales, thresholds, pruning, and the outcome."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from otbr_jax.defenses.defense import Outcome, count_neurons, rounded
from otbr_jax.defenses.grid import Built, Grid
from otbr_jax.errors import InputError
from otbr_jax.numerics.collectives import mean
from otbr_jax.plan import Report, Setup, Shown, Step, needs
from otbr_jax.settings import field, settings
from otbr_jax.steps.gates import Factors, Gates, check_gates, close_gates, gates_of, masks_by_layer
from otbr_jax.steps.select import measure_accuracies, measure_accuracy, strongest_harmless
from otbr_jax.types import Batch, Variables

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(19))
"""The published grid, 0 to 0.9 in steps of 0.05."""
NOTHING = -0.05
"""A threshold that no mask reaches: nothing is pruned."""
CLEAN = "clean images"
"""What a threshold is chosen on, in words."""


@settings("selection")
class ThresholdConfig:
    """How the threshold is chosen with the clean images."""

    thresholds: tuple[float, ...] = field(
        default=(), at_least=0, below=1, doc="values to choose from; empty for the method's own `threshold`."
    )
    tolerance: float = field(
        default=0.02,
        at_least=0,
        at_most=1,
        doc="by how much the pruned network's accuracy on the clean images may fall, a difference.",
    )

    def candidates(self, fixed: float) -> tuple[float, ...]:
        """The thresholds to choose from, ascending, after one that prunes nothing; or the fixed threshold alone."""
        return (NOTHING, *sorted({*self.thresholds})) if self.thresholds else (fixed,)


@settings("sweep")
class ThresholdSweepConfig:
    """The settings that the report shows beside the chosen one; empty for none."""

    thresholds: tuple[float, ...] = field(default=THRESHOLDS, at_least=0, below=1, doc="thresholds of masks.")


class Learning(NamedTuple):
    """Masks while they are learned, `{name of a parameter: its shape}`, and the optimiser's state."""

    masks: Factors
    opt_state: Any


def sgd(config: Any) -> optax.GradientTransformation:
    """The optimiser of masks: SGD at the `learning_rate` and with the `momentum` of the settings."""
    return optax.sgd(config.learning_rate, momentum=config.momentum)


class Masks(NamedTuple):
    """Learned masks, and the history of learning.

    Attributes:
      masks: `{name of a parameter: its shape}`, in [0, 1]; 1 for parameters that are no scales.
      loss: `[rounds]`, mean cross-entropy of the masked network in training mode, before each round.
      accuracy: `[rounds]`, in [0, 1].
    """

    masks: Factors
    loss: jax.Array
    accuracy: jax.Array


class Selected(NamedTuple):
    """Accuracy on the clean images of each threshold, `[thresholds]`; `reference` unpruned; and the chosen index."""

    accuracy: jax.Array
    reference: jax.Array
    chosen: jax.Array


class Pruned(NamedTuple):
    """The pruned network.

    Attributes:
      variables: its variables.
      pruned: `{layer name: bool [neurons]}`, those with a mask of at most the threshold.
      scores: `{layer name: [neurons]}`, 1 - the smallest mask of the neuron.
    """

    variables: Variables
    pruned: Mapping[str, jax.Array]
    scores: Mapping[str, jax.Array]


def check(setup: Setup, *, name: str) -> None:
    """Raises InputError, for a defence of that name, if the network has no normalisation with statistics."""
    check_gates(setup.graph.layers, name=name)


def gates_step(name: str) -> Step:
    """The step `gates` of the defence of that name: which parameters of all layers, shortcuts too, are scales."""

    def check_any(settings: None, gates: Gates) -> None:
        if not any(bool(gate) for gate in gates.values()):
            raise InputError(
                f"defense: expected a network with a normalisation whose scale and variance balance each other, which "
                f"{name} gates, found none among {len(gates)} parameters"
            )

    return Step("gates", find_gates, needs("victim"), check=check_any, shown=Shown("finding normalisations"))


def find_gates(setup: Setup, settings: None, *, victim: Variables, key: jax.Array, **_: Any) -> Gates:
    """Which parameters are scales of normalisations."""
    return gates_of(setup.network, victim, setup.graph.layers, key=key)


def check_masks(settings: Any, masks: Masks, *, name: str) -> None:
    """Raises InputError, which calls the settings `name`, if learning of masks diverged."""
    losses = np.asarray(masks.loss)
    if not np.isfinite(losses).all():
        bad = int(np.flatnonzero(~np.isfinite(losses))[0])
        raise InputError(
            f"{name}.learning_rate: expected a finite loss, found {losses[bad]} in round {bad + 1} of {len(losses)}; "
            f"lower it from {settings.learning_rate:g}"
        )


class SelectionSettings(NamedTuple):
    """The settings of `select`: thresholds, ascending, and the tolerance."""

    thresholds: tuple[float, ...]
    tolerance: float


def select(
    setup: Setup,
    settings: SelectionSettings,
    *,
    victim: Variables,
    gates: Gates,
    masks: Masks,
    clean: Batch,
    report: Report | None,
    **_: Any,
) -> Selected:
    """Chooses the highest threshold at which, as at all lower ones, the loss of accuracy is within the tolerance."""

    def pruned(threshold: jax.Array) -> Variables:
        return close_gates(victim, gates, masks.masks, threshold)

    thresholds, axis_name = jnp.array(settings.thresholds), setup.axis_name
    accuracy = measure_accuracies(setup.network, pruned, thresholds, clean, report=report, axis_name=axis_name)
    reference = mean(measure_accuracy(setup.network, victim, clean), axis_name)
    chosen = strongest_harmless(accuracy, reference=reference, tolerance=settings.tolerance)
    return Selected(accuracy, reference, chosen)


def prune(
    setup: Setup,
    settings: tuple[float, ...],
    *,
    victim: Variables,
    gates: Gates,
    masks: Masks,
    selected: Selected | None = None,
    **_: Any,
) -> Pruned:
    """Prunes the neurons with a mask of at most the threshold: sets the scales of their normalisation to zero."""
    threshold = jnp.array(settings)[0 if selected is None else selected.chosen]
    least = masks_by_layer(setup.layers, gates, masks.masks)
    pruned = {name: mask <= threshold for name, mask in least.items()}
    scores = {name: 1 - mask for name, mask in least.items()}
    return Pruned(close_gates(victim, gates, masks.masks, threshold), pruned, scores)


def pruning_steps(threshold: float, selection: ThresholdConfig) -> tuple[Step, ...]:
    """(selected ->) pruned, behind `gates` and `masks`; the threshold is the method's own one."""
    thresholds = selection.candidates(threshold)
    pruned = Step("pruned", prune, needs("victim", "gates", "masks"), thresholds, shown=Shown("pruning"))
    if not selection.thresholds:
        return (pruned,)
    selected = Step(
        "selected",
        select,
        needs("victim", "gates", "masks", "clean"),
        SelectionSettings(thresholds, selection.tolerance),
        shown=Shown("choosing the threshold, clean images only", total=len(thresholds), unit="threshold"),
    )
    needed = needs("victim", "gates", "masks", "selected")
    return selected, Step("pruned", prune, needed, thresholds, shown=Shown("pruning"))


def build(setup: Setup, setting: jax.Array, *, victim: Variables, gates: Gates, masks: Masks, key: jax.Array) -> Built:
    """The network pruned at a threshold."""
    del setup, key
    return Built({"pruned": close_gates(victim, gates, masks.masks, setting)})


def grid(config: ThresholdSweepConfig) -> Grid | None:
    """The thresholds to measure."""
    thresholds = config.thresholds
    if not thresholds:
        return None
    return Grid(
        axes={"threshold": thresholds},
        settings=tuple((threshold,) for threshold in thresholds),
        arrays=lambda setup: jnp.array(thresholds),
        build=build,
        needs=("victim", "gates", "masks"),
        along=("threshold",),
        strength="threshold of masks",
        network="pruned",
        unit="threshold",
    )


def outcome(threshold: float, selection: ThresholdConfig, values: Mapping[str, Any], **fields: Any) -> Outcome:
    """How many channels were pruned, at which threshold.

    Args:
      threshold: the method's own one.
      selection: how another one is chosen.
      values: the steps' by name.
      fields: of `Outcome`, which replace or complete these; `more` is merged.
    """
    gates, masks, network = values["gates"], values["masks"], values["pruned"]
    thresholds, place, rows = selection.candidates(threshold), 0, None
    if "selected" in values:
        selected = values["selected"]
        place = int(selected.chosen)
        rows = [
            {"threshold": each, "accuracy": rounded(accuracy)}
            for each, accuracy in zip(thresholds, selected.accuracy, strict=True)
        ]
    own = [np.asarray(mask) for name, mask in masks.masks.items() if bool(gates[name])]
    closed = sum(int(np.sum(mask <= np.float32(thresholds[place]))) for mask in own)
    channels = sum(mask.size for mask in own)
    scored, pruned = count_neurons(network.pruned)
    history = {"loss": rounded(masks.loss[-1]), "accuracy": rounded(masks.accuracy[-1])} if len(masks.loss) else None
    common: dict[str, Any] = {
        "choice": {"threshold": thresholds[place], "chosen_by": CLEAN if rows else "config"},
        "done": f"{closed} of {channels} channels of normalisations pruned",
        "did": "pruned",
        "neurons": {"scored": scored, "pruned": pruned},
        "touched": network.pruned,
        "scores": network.scores,
        "score": "1 - mask",
        "more": {"tried": rows, "masks": history} | fields.pop("more", {}),
    }
    return Outcome(**common | fields)
