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
from otbr_jax.detectors.calibration import Usual
from otbr_jax.detectors.detector import conclude
from otbr_jax.detectors.anomalies import Anomalies, unusual
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
from otbr_jax.steps.teach import TriggersToUnlearn, TeachingConfig, TeachingInfo, teach, untaught
from otbr_jax.triggers import FAMILIES
from otbr_jax.types import Network, Variables


@settings("")
class DisarmSettings(TriggerSizeSettings):
    """All settings of the defence `disarm`: those of its detector, and of the lessons."""

    teaching: TeachingConfig = field(default=TeachingConfig(), doc="how the network is taught.")
    layers: str = field(default="auto", choices=LAYERS, doc="whose neurons the report shows; see `choose_layers`.")


class Disarmed(NamedTuple):
    """The network after its lessons, and how they went."""

    variables: Variables
    info: TeachingInfo


def to_unlearn(
    found: Anomalies, reached: MinimalTriggers, families: tuple[str, ...], usual: Usual
) -> TriggersToUnlearn:
    """What is to be closed: of what is wanted the most telling, as many as there are families."""
    telling = jnp.where(found.wanted, unusual(found.evidence, families, usual)[: len(families)], -jnp.inf)
    family, place = jnp.unravel_index(jnp.argsort(-telling, axis=None)[: len(families)], telling.shape)
    of = (family, place)
    return TriggersToUnlearn(
        family, reached.classes[place], reached.size[of], found.budget[of], reached.flat_latent[of], found.wanted[of]
    )


class Lessons(NamedTuple):
    """What `disarm_suspect` is given: how it teaches, which families, and what is usual in clean networks."""

    teaching: TeachingConfig
    families: tuple[str, ...]
    usual: Usual


def disarm_suspect(
    setup: Setup,
    settings: Lessons,
    *,
    victim: Variables,
    procedural: PredictedImages,
    reached: MinimalTriggers,
    detected: Anomalies,
    key: jax.Array,
    report: Report | None,
) -> Disarmed:
    """The network, taught that triggers of its short cuts mean nothing; as it is if it has none."""
    switch = switch_of(setup, settings.families)
    closing = to_unlearn(detected, reached, settings.families, settings.usual)
    teaching = settings.teaching
    return Disarmed(
        *teach(
            setup.network, victim, procedural.batch, switch, closing,
            key=key, config=teaching, axis_name=setup.axis_name, on_step=report,
        )
    )  # fmt: skip


def leave_alone(
    setup: Setup, settings: Lessons, *, victim: Variables, reached: MinimalTriggers, detected: Anomalies, **_: Any
) -> Disarmed:
    """What `disarm_suspect` makes of a network in which nothing is to be closed."""
    del setup
    closing = to_unlearn(detected, reached, settings.families, settings.usual)
    return Disarmed(*untaught(victim, closing, config=settings.teaching))


def change(setup: Setup, settings: None, *, victim: Variables, disarmed: Disarmed, **_: Any) -> dict[str, jax.Array]:
    """By how much each neuron's weights moved."""
    return neuron_weight_changes(victim, disarmed.variables, setup.layers)


def plan(config: DisarmSettings) -> Plan:
    """The detector's pictures -> screened -> reached -> margins -> detected, then disarmed -> changes."""
    teaching = config.teaching
    return (
        *detecting.plan(config),
        Step(
            "disarmed",
            disarm_suspect,
            needs("victim", "procedural", "reached", "detected"),
            Lessons(teaching, config.detection.families, usual_evidence()),
            instead=lambda settings, inputs: None if np.any(inputs["detected"].wanted) else leave_alone,
            shown=Shown(
                "searching and teaching",
                total=teaching.rounds * (teaching.search.steps + teaching.steps),
                work=partial(lessons_work, config),
                lighter="teaching.batch_size",
            ),
        ),
        Step("changes", change, needs("victim", "disarmed"), shown=Shown("what moved")),
    )


def lessons_work(config: DisarmSettings, setup: Setup) -> Work:
    """What lessons take at most: those against one short cut; none where no class is flagged."""
    del setup
    teaching = config.teaching
    search = teaching.search
    answers = search.starts * search.images + teaching.steps * teaching.batch_size
    gradients = teaching.triggers * search.steps * search.images + 3 * teaching.steps * teaching.batch_size
    what = f"{teaching.rounds} rounds of lessons, if a class is flagged,"
    return Work(what, teaching.rounds * answers, teaching.rounds * gradients, "--config.teaching.rounds=2")


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
    names, rounds = config.detection.families, int(np.sum(info.taught))
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
    if np.any(info.undone):
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
        more={"detection": measured(config, values), "taught": _lessons(config, values)},
    )


def _lessons(config: DisarmSettings, values: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """What was taught, family by family; None where nothing was."""
    info, closing, families = values["disarmed"].info, _closing(config, values), config.detection.families
    if not np.any(info.taught):
        return None
    rounds = int(np.sum(info.taught))
    return [
        {
            "class": int(closing.target[index]),
            "family": families[family],
            "undone": bool(info.undone),
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
    closing = to_unlearn(values["detected"], values["reached"], config.detection.families, usual_evidence())
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
