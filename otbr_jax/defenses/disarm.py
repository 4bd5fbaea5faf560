"""Disarm: find the class that some trigger reaches too cheaply, and teach the network that the trigger means nothing.

No data and no oracle. The detector `trigger_size` says which class and which triggers; then the network is taught on
procedural pictures, where its own logits take the place of labels. The class stays, since the network is its own
teacher on pictures without a trigger.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax import plan as plans
from otbr_jax.defenses.defense import Defense, Outcome, count_neurons
from otbr_jax.detectors import trigger_size as detecting
from otbr_jax.detectors.anomalies import Anomalies, unusual
from otbr_jax.detectors.calibration import Usual
from otbr_jax.detectors.detector import conclude
from otbr_jax.detectors.trigger_size import PROCEDURAL, TriggerSizeSettings, measured, switch_of, usual_evidence
from otbr_jax.detectors.verdict import Backdoored
from otbr_jax.graph.choose import LAYERS
from otbr_jax.graph.graph import NeuronGraph
from otbr_jax.inversion import MinimalTriggers
from otbr_jax.metrics import rounded
from otbr_jax.plan import Plan, Report, Setup, Shown, Step, Work, needs
from otbr_jax.settings import field, settings
from otbr_jax.steps.procedural import PredictedImages
from otbr_jax.steps.score import neuron_weight_changes
from otbr_jax.steps.unlearn_triggers import (
    TriggersToUnlearn,
    TriggerUnlearningConfig,
    TriggerUnlearningInfo,
    unlearn_nothing,
    unlearn_triggers,
)
from otbr_jax.triggers import FAMILIES
from otbr_jax.types import Network, Variables


@settings("")
class DisarmSettings(TriggerSizeSettings):
    """All settings of the defence `disarm`: those of its detector, and of the lessons."""

    unlearning: TriggerUnlearningConfig = field(
        formerly="teaching", default=TriggerUnlearningConfig(), doc="how the network is taught."
    )
    layers: str = field(default="auto", choices=LAYERS, doc="whose neurons the report shows; see `choose_layers`.")


class Disarmed(NamedTuple):
    """The network after its lessons, and how they went."""

    variables: Variables
    info: TriggerUnlearningInfo


def to_unlearn(
    found: Anomalies, minimal: MinimalTriggers, families: tuple[str, ...], usual: Usual
) -> TriggersToUnlearn:
    """What is to be closed: of what is wanted the most telling, as many as there are families."""
    telling = jnp.where(found.wanted, unusual(found.evidence, families, usual)[: len(families)], -jnp.inf)
    family, place = jnp.unravel_index(jnp.argsort(-telling, axis=None)[: len(families)], telling.shape)
    of = (family, place)
    return TriggersToUnlearn(
        family, minimal.classes[place], minimal.size[of], found.budget[of], minimal.flat_latent[of], found.wanted[of]
    )


class Unlearning(NamedTuple):
    """What `disarm_suspect` is given: how it teaches, which families, and what is usual in clean networks."""

    unlearning: TriggerUnlearningConfig
    families: tuple[str, ...]
    usual: Usual


def disarm_suspect(
    setup: Setup,
    settings: Unlearning,
    *,
    victim: Variables,
    procedural: PredictedImages,
    minimal: MinimalTriggers,
    detected: Anomalies,
    key: jax.Array,
    report: Report | None,
) -> Disarmed:
    """The network, taught that triggers of its short cuts mean nothing; as it is if it has none."""
    switch = switch_of(setup, settings.families)
    closing = to_unlearn(detected, minimal, settings.families, settings.usual)
    unlearning = settings.unlearning
    return Disarmed(
        *unlearn_triggers(
            setup.network, victim, procedural.batch, switch, closing,
            key=key, config=unlearning, axis_name=setup.axis_name, on_step=report,
        )
    )  # fmt: skip


def leave_alone(
    setup: Setup, settings: Unlearning, *, victim: Variables, minimal: MinimalTriggers, detected: Anomalies, **_: Any
) -> Disarmed:
    """What `disarm_suspect` makes of a network in which nothing is to be closed."""
    del setup
    closing = to_unlearn(detected, minimal, settings.families, settings.usual)
    return Disarmed(*unlearn_nothing(victim, closing, config=settings.unlearning))


def change(setup: Setup, settings: None, *, victim: Variables, disarmed: Disarmed, **_: Any) -> dict[str, jax.Array]:
    """By how much each neuron's weights moved."""
    return neuron_weight_changes(victim, disarmed.variables, setup.layers)


def plan(config: DisarmSettings) -> Plan:
    """The detector's procedural -> screened -> minimal -> margins -> detected, then disarmed -> changes."""
    unlearning = config.unlearning
    return (
        *detecting.plan(config),
        Step(
            "disarmed",
            disarm_suspect,
            needs("victim", "procedural", "minimal", "detected"),
            Unlearning(unlearning, config.detection.families, usual_evidence()),
            instead=lambda settings, inputs: None if np.any(inputs["detected"].wanted) else leave_alone,
            shown=Shown(
                "searching and teaching",
                total=unlearning.rounds * (unlearning.inversion.steps + unlearning.steps),
                work=partial(unlearning_work, config),
                lighter="unlearning.batch_size",
            ),
        ),
        Step("changes", change, needs("victim", "disarmed"), shown=Shown("what moved")),
    )


def unlearning_work(config: DisarmSettings, setup: Setup) -> Work:
    """What lessons take at most: those against one short cut; none where no class is flagged."""
    del setup
    unlearning = config.unlearning
    search = unlearning.inversion
    answers = search.starts * search.images + unlearning.steps * unlearning.batch_size
    gradients = unlearning.triggers * search.steps * search.images + 3 * unlearning.steps * unlearning.batch_size
    what = f"{unlearning.rounds} rounds of lessons, if a class is flagged,"
    return Work(what, unlearning.rounds * answers, unlearning.rounds * gradients, "--config.unlearning.rounds=2")


def disarm(
    network: Network,
    variables: Variables,
    graph: NeuronGraph,
    *,
    key: jax.Array,
    config: DisarmSettings,
    axis_name: str | None = None,
) -> tuple[Variables, Anomalies]:
    """Repairs a network without any data, or leaves it as it is. Pure; jits; runs on a mapped axis with `axis_name`.

    Args:
      network: the functions of the network.
      variables: the suspicious network's variables.
      graph: its neuron graph.
      key: typed PRNG key.
      config: the method's settings.
      axis_name: mapped axis whose devices share each step's pictures.

    Returns:
      `(repaired variables, Anomalies)`.
    """
    setup = plans.set_up(network, graph, layers=config.layers, axis_name=axis_name)
    found = plans.run(plan(config), setup, {"victim": variables}, key=key)
    return found["disarmed"].variables, found["detected"]


def outcome(config: DisarmSettings, values: Mapping[str, Any]) -> Outcome:
    """What was flagged, and what was taught."""
    verdict = conclude(detecting.DETECTOR, config, values)
    info, changes = values["disarmed"].info, values["changes"]
    names, rounds = config.detection.families, int(np.sum(info.done))
    counted = "1 round" if rounds == 1 else f"{rounds} rounds"
    moved = {name: change > 0 for name, change in changes.items()}
    scored, touched = count_neurons(moved)
    closing = _closing(config, values)
    pairs = zip(closing.family, closing.target, strict=True)
    taught = ", ".join(f"class {target}'s {names[family]}" for family, target in pairs)
    done = "nothing was changed"
    if verdict.backdoored == Backdoored.CANNOT_TELL:
        done += ", since nobody can tell whether there is a backdoor"
    if rounds:
        done = f"{taught} triggers were taught to mean nothing, {counted}"
    if np.any(info.reverted):
        done = (
            f"nothing was changed: {counted} of lessons against {taught} triggers were in vain and are undone; "
            "the class may be what the network answers when in doubt, and no backdoor"
        )
    elif len(closing.family) and not rounds:
        done += ", since no trigger within the budget of a lesson works"
    return Outcome(
        choice={"chosen_by": PROCEDURAL if verdict.backdoored == Backdoored.YES else "no class flagged"},
        done=done,
        did="moved",
        neurons={"scored": scored, "moved": touched},
        touched=moved,
        scores=changes,
        scored="Which neurons the lessons moved",
        verdict=verdict,
        more={"detection": measured(config, values), "unlearned_triggers": _lessons(config, values)},
    )


def _lessons(config: DisarmSettings, values: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """What was taught, family by family; None where nothing was."""
    info, closing, families = values["disarmed"].info, _closing(config, values), config.detection.families
    if not np.any(info.done):
        return None
    rounds = int(np.sum(info.done))
    return [
        {
            "class": int(closing.target[index]),
            "family": families[family],
            "reverted": bool(info.reverted),
            "budget": rounded(closing.budget[index]),
            "unit": FAMILIES[families[family]].unit,
            "success": [rounded(value) for value in np.max(info.success, axis=2)[:rounds, index]],
            "left": [rounded(value) for value in np.asarray(info.left)[:rounds, index]],
            "distortion": [rounded(value) for value in np.asarray(info.distortion)[:rounds]],
        }
        for index, family in enumerate(closing.family)
    ]


def _closing(config: DisarmSettings, values: Mapping[str, Any]) -> TriggersToUnlearn:
    """What was closed, without what was not wanted."""
    closing = to_unlearn(values["detected"], values["minimal"], config.detection.families, usual_evidence())
    wanted = np.asarray(closing.wanted)
    return TriggersToUnlearn(*(np.asarray(leaf)[wanted] for leaf in closing))


DEFENSE = Defense(
    name="disarm",
    Config=DisarmSettings,
    data="none",
    layers=lambda config: config.layers,
    plan=plan,
    networks=lambda config: ("victim", "disarmed"),
    outcome=outcome,
    detector=lambda config: detecting.DETECTOR,
)
