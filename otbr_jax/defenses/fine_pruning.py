"""Fine-pruning: channels that clean images activate least are pruned, then it is fine-tuned (arXiv 1805.12185)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax import plan as plans
from otbr_jax.defenses.defense import Defense, Outcome, rounded
from otbr_jax.defenses.ft import PUBLISHED, batch_sizes
from otbr_jax.defenses.grid import Built, Grid
from otbr_jax.defenses.tuning import changes_step, plain_history, takes_clean, tuned_outcome, tuning_step
from otbr_jax.errors import InputError
from otbr_jax.graph.graph import Layer
from otbr_jax.graph.taps import tap_inputs
from otbr_jax.plan import Plan, Report, Setup, Shown, Step, needs
from otbr_jax.settings import field, settings
from otbr_jax.steps.finetune import FinetuningConfig, finetune
from otbr_jax.steps.objective import Objective, cross_entropy
from otbr_jax.steps.prune import neurons_to_prune
from otbr_jax.steps.select import measure_accuracies, strongest_harmless
from otbr_jax.types import Batch, Variables, named_leaves, replace_leaves, split

_AT_ONCE = 200  # images


@settings("pruning")
class PruningConfig:
    """How many of the channels before the classifier are pruned."""

    step: float = field(
        default=0.01,
        at_least=0,
        below=1,
        doc="share of the channels that is pruned at a time, while accuracy allows it; 0 to prune `share` at once.",
    )
    tolerance: float = field(
        default=0.02, at_least=0, at_most=1, doc="by how much accuracy on the clean images may fall, a difference."
    )
    share: float = field(default=0.5, at_least=0, at_most=1, doc="share of the channels that is pruned if `step` is 0.")


@settings("sweep")
class SweepConfig:
    """The settings that the report shows beside the chosen one; empty for none."""

    share: tuple[float, ...] = field(
        default=(), at_least=0, at_most=1, doc="shares of the channels. Each costs a fine-tuning."
    )


@settings("")
class FinePruningSettings:
    """All settings of the defence `fine_pruning`."""

    pruning: PruningConfig = field(default=PruningConfig(), doc="step 1, pruning.")
    finetuning: FinetuningConfig = field(default=PUBLISHED, doc="step 2, fine-tuning.")
    sweep: SweepConfig = field(default=SweepConfig(), doc="settings that the report shows beside the chosen one.")


class Shares(NamedTuple):
    """Accuracy on the clean images of each number of channels, `[candidates]` in [0, 1], and the chosen index."""

    accuracy: jax.Array
    chosen: jax.Array


class Pruned(NamedTuple):
    """The pruned network, and which inputs of its classifier were pruned, `{classifier's name: bool [inputs]}`."""

    variables: Variables
    pruned: Mapping[str, jax.Array]


def classifier_of(setup: Setup) -> Layer:
    """The layer that outputs the logits; raises InputError if the last layer has no channels as inputs."""
    layers = setup.graph.layers
    last = layers[-1] if layers else None
    classes = setup.network.num_classes
    if last is None or last.kind not in ("conv", "dense") or last.neurons != classes or len(last.input_axes) != 1:
        found = "none" if last is None else f"{last.name}, {last.kind} with {last.neurons} neurons"
        raise InputError(
            f"defense: expected a network whose last layer gives its {classes} classes, whose inputs fine_pruning "
            f"prunes, found {found}; defences that need none are disarm, tsbd and ft"
        )
    return last


def check(setup: Setup, config: FinePruningSettings) -> None:
    """Raises InputError if the network has no classifier with channels as inputs."""
    del config
    classifier_of(setup)


def activations(
    setup: Setup, settings: None, *, victim: Variables, clean: Batch, key: jax.Array, report: Report | None
) -> dict[str, jax.Array]:
    """The mean of each input of the classifier over clean images, and positions if any; in evaluation mode."""
    del key, report
    name = classifier_of(setup).name
    forward = tap_inputs(setup.network.answer, [name])
    inputs = jax.lax.map(lambda image: forward(victim, image[None])[1][name][0], clean.images, batch_size=_AT_ONCE)
    inputs = inputs.astype(jnp.float32)
    return {name: jnp.mean(inputs, axis=tuple(range(inputs.ndim - 1)))}


def prune_inputs(
    victim: Variables, layer: Layer, activation: jax.Array, *, count: int | jax.Array
) -> tuple[Variables, jax.Array]:
    """Prunes the `count` least active inputs of the classifier; the network, and bool `[inputs]` which they are.

    The logits are those of a network without the channels themselves.
    """
    ranks = jnp.argsort(jnp.argsort(activation))
    pruned = ranks < count
    kernel = named_leaves(victim)[layer.name]
    return replace_leaves(victim, {layer.name: jnp.where(_along(pruned, layer, kernel), 0, kernel)}), pruned


def _along(mask: jax.Array, layer: Layer, kernel: jax.Array) -> jax.Array:
    """A mask of a layer's inputs in a shape that fits its kernel."""
    shape = [1] * kernel.ndim
    shape[layer.input_axes[0]] = layer.inputs
    return mask.reshape(shape)


def counts_of(setup: Setup, step: float) -> tuple[int, ...]:
    """The numbers of channels to try: none, and always a share of `step` more, while some are left."""
    channels = classifier_of(setup).inputs
    return tuple(range(0, channels, max(1, math.ceil(step * channels - 1e-9))))


def select(
    setup: Setup,
    settings: PruningConfig,
    *,
    victim: Variables,
    activations: Mapping[str, jax.Array],
    clean: Batch,
    key: jax.Array,
    report: Report | None,
) -> Shares:
    """Chooses how many channels are pruned: as many as the tolerated loss of accuracy allows."""
    del key
    layer = classifier_of(setup)

    def pruned(count: jax.Array) -> Variables:
        return prune_inputs(victim, layer, activations[layer.name], count=count)[0]

    accuracy = measure_accuracies(
        setup.network, pruned, jnp.array(counts_of(setup, settings.step)), clean, report=report
    )
    return Shares(accuracy, strongest_harmless(accuracy, reference=accuracy[0], tolerance=settings.tolerance))


def prune(
    setup: Setup,
    settings: PruningConfig,
    *,
    victim: Variables,
    activations: Mapping[str, jax.Array],
    selected: Shares | None = None,
    **_: Any,
) -> Pruned:
    """Step 1: the least active channels are pruned."""
    layer = classifier_of(setup)
    count: int | jax.Array = neurons_to_prune(settings.share, layer.inputs)
    if selected is not None:
        count = jnp.array(counts_of(setup, settings.step))[selected.chosen]
    variables, mask = prune_inputs(victim, layer, activations[layer.name], count=count)
    return Pruned(variables, {layer.name: mask})


def objective(setup: Setup, like: Any, own: None, *, pruned: Pruned) -> Objective:
    """The cross-entropy in training mode; the gradient of pruned weights is zero, so that they stay zero."""
    del own
    layer = classifier_of(setup)
    loss_and_grads = cross_entropy(setup.network, like, axis_name=setup.axis_name)

    def masked(params: Any, state: Any, batch: Batch) -> Any:
        evaluated, gradients = loss_and_grads(params, state, batch)
        kernel = named_leaves({"params": gradients})[layer.name]
        kept = jnp.where(_along(pruned.pruned[layer.name], layer, kernel), 0, kernel)
        return evaluated, replace_leaves({"params": gradients}, {layer.name: kept})["params"]

    return masked


def plan(config: FinePruningSettings) -> Plan:
    """activations (-> selected) -> pruned -> finetuned -> changes."""
    steps = [
        Step("activations", activations, needs("victim", "clean"), shown=Shown("mean activations of clean images"))
    ]
    selected: list[str] = []
    if config.pruning.step:
        selected = ["selected"]
        steps.append(
            Step(
                "selected",
                select,
                needs("victim", "activations", "clean"),
                config.pruning,
                shown=Shown(
                    "choosing how many channels to prune, clean images only",
                    total=lambda setup: len(counts_of(setup, config.pruning.step)),
                    unit="share",
                ),
            )
        )
    return (
        *steps,
        Step("pruned", prune, needs("victim", "activations", *selected), config.pruning, shown=Shown("pruning")),
        tuning_step(
            "finetuned",
            config.finetuning,
            "fine-tuning",
            group="finetuning",
            start="pruned",
            more=("pruned",),
            objective=objective,
        ),
        changes_step("finetuned"),
    )


def build(
    setup: Setup,
    setting: jax.Array,
    *,
    config: FinePruningSettings,
    victim: Variables,
    activations: Mapping[str, jax.Array],
    clean: Batch,
    key: jax.Array,
) -> Built:
    """Prunes the channels of a setting, and fine-tunes the network."""
    layer = classifier_of(setup)
    start, mask = prune_inputs(victim, layer, activations[layer.name], count=setting)
    repaired, _ = finetune(
        setup.network,
        start,
        clean,
        key=plans.named_key(key, "finetuned"),
        config=config.finetuning,
        objective=objective(setup, split(start)[0], None, pruned=Pruned(start, {layer.name: mask})),
        augment=setup.augment,
    )
    return Built({"pruned": start, "finetuned": repaired})


def grid(config: FinePruningSettings) -> Grid | None:
    """The shares to measure."""
    shares = config.sweep.share
    if not shares:
        return None
    return Grid(
        axes={"share": shares},
        settings=tuple((share,) for share in shares),
        arrays=lambda setup: jnp.array([neurons_to_prune(share, classifier_of(setup).inputs) for share in shares]),
        build=partial(build, config=config),
        needs=("victim", "activations", "clean"),
        along=("share",),
        strength="share of channels pruned",
        network="finetuned",
        unit="run",
    )


def outcome(config: FinePruningSettings, values: Mapping[str, Any]) -> Outcome:
    """How many channels were pruned, how that was chosen, and the history of fine-tuning."""
    del config
    ((name, mask),) = values["pruned"].pruned.items()
    channels, count = int(mask.size), int(mask.sum())
    pruning: dict[str, Any] = {"classifier": name, "channels": channels, "pruned": count}
    if "selected" in values:
        accuracy, chosen = values["selected"]
        pruning |= {
            "clean_accuracy": rounded(accuracy[0]),
            "clean_accuracy_pruned": rounded(accuracy[int(chosen)]),
        }
    return tuned_outcome(
        values,
        done=f"{count} of {channels} channels before the classifier pruned, fine-tuned",
        choice={
            "share": rounded(count / channels),
            "chosen_by": "clean images" if "selected" in values else "config",
        },
        more={"pruning": pruning, "finetuning": plain_history(values["finetuned"])},
    )


DEFENSE = Defense(
    name="fine_pruning",
    Config=FinePruningSettings,
    data="clean images",
    layers=lambda config: "auto",
    plan=plan,
    networks=lambda config: ("victim", "pruned", "finetuned"),
    outcome=outcome,
    check=check,
    given=takes_clean(batch_sizes),
    grid=grid,
    batch_sizes=batch_sizes,
    source="arXiv 1805.12185",
)
