"""Disarm: inverts minimal triggers, flags the class whose triggers are too small, and unlearns them.

No data and no oracle. The detector `trigger_size` flags the class and chooses the triggers. The network then unlearns
them on procedural images: its logits on images with a trigger are trained to match those of the suspicious network on
the same images without it. The class itself stays, since images without a trigger keep their logits.
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
from otbr_jax.detectors.anomalies import Anomalies, z_scores
from otbr_jax.detectors.calibration import CleanEvidence
from otbr_jax.detectors.detector import conclude
from otbr_jax.detectors.trigger_size import PROCEDURAL, TriggerSizeSettings, clean_evidence, details, switch_of
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
    """All settings of the defence `disarm`: those of its detector, and of unlearning."""

    unlearning: TriggerUnlearningConfig = field(
        formerly="teaching", default=TriggerUnlearningConfig(), doc="how triggers are unlearned."
    )
    layers: str = field(default="auto", choices=LAYERS, doc="whose neurons the report shows; see `choose_layers`.")


class Disarmed(NamedTuple):
    """The network after unlearning, and what was measured in each round."""

    variables: Variables
    info: TriggerUnlearningInfo


def to_unlearn(
    anomalies: Anomalies, minimal: MinimalTriggers, families: tuple[str, ...], clean_evidence: CleanEvidence
) -> TriggersToUnlearn:
    """The most anomalous of the triggers that are to be unlearned, as many as there are families."""
    scores = z_scores(anomalies.evidence, families, clean_evidence)[: len(families)]
    scores = jnp.where(anomalies.wanted, scores, -jnp.inf)
    family, place = jnp.unravel_index(jnp.argsort(-scores, axis=None)[: len(families)], scores.shape)
    at = (family, place)
    return TriggersToUnlearn(
        family,
        minimal.classes[place],
        minimal.size[at],
        anomalies.budget[at],
        minimal.flat_latent[at],
        anomalies.wanted[at],
    )


class UnlearningSettings(NamedTuple):
    """The settings of `unlearn_detected`: rounds and steps, trigger families, and the evidence of clean networks."""

    unlearning: TriggerUnlearningConfig
    families: tuple[str, ...]
    clean_evidence: CleanEvidence


def unlearn_detected(
    setup: Setup,
    settings: UnlearningSettings,
    *,
    victim: Variables,
    procedural: PredictedImages,
    minimal: MinimalTriggers,
    detected: Anomalies,
    key: jax.Array,
    report: Report | None,
) -> Disarmed:
    """Unlearns the anomalous triggers; returns the network unchanged if there are none."""
    switch = switch_of(setup, settings.families)
    triggers = to_unlearn(detected, minimal, settings.families, settings.clean_evidence)
    return Disarmed(
        *unlearn_triggers(
            setup.network, victim, procedural.batch, switch, triggers,
            key=key, config=settings.unlearning, axis_name=setup.axis_name, on_step=report,
        )
    )  # fmt: skip


def return_unchanged(
    setup: Setup,
    settings: UnlearningSettings,
    *,
    victim: Variables,
    minimal: MinimalTriggers,
    detected: Anomalies,
    **_: Any,
) -> Disarmed:
    """The value of `unlearn_detected` for a network without anomalous triggers; compiles faster."""
    del setup
    triggers = to_unlearn(detected, minimal, settings.families, settings.clean_evidence)
    return Disarmed(*unlearn_nothing(victim, triggers, config=settings.unlearning))


def change(setup: Setup, settings: None, *, victim: Variables, disarmed: Disarmed, **_: Any) -> dict[str, jax.Array]:
    """The weight change of each neuron, `{layer name: [neurons]}`."""
    return neuron_weight_changes(victim, disarmed.variables, setup.layers)


def plan(config: DisarmSettings) -> Plan:
    """The detector's procedural -> screened -> minimal -> margins -> detected, then disarmed -> changes."""
    unlearning = config.unlearning
    return (
        *detecting.plan(config),
        Step(
            "disarmed",
            unlearn_detected,
            needs("victim", "procedural", "minimal", "detected"),
            UnlearningSettings(unlearning, config.detection.families, clean_evidence()),
            instead=lambda settings, inputs: None if np.any(inputs["detected"].wanted) else return_unchanged,
            shown=Shown(
                "unlearning triggers",
                total=unlearning.rounds * (unlearning.inversion.steps + unlearning.steps),
                work=partial(unlearning_work, config),
                lighter="unlearning.batch_size",
            ),
        ),
        Step("changes", change, needs("victim", "disarmed"), shown=Shown("weight changes")),
    )


def unlearning_work(config: DisarmSettings, setup: Setup) -> Work:
    """The work of unlearning one family's triggers in all rounds; there is none if no class is flagged."""
    del setup
    unlearning = config.unlearning
    search = unlearning.inversion
    passes = search.starts * search.images + unlearning.steps * unlearning.batch_size
    gradients = unlearning.triggers * search.steps * search.images + 3 * unlearning.steps * unlearning.batch_size
    what = f"{unlearning.rounds} rounds of unlearning, if a class is flagged,"
    return Work(what, unlearning.rounds * passes, unlearning.rounds * gradients, "--config.unlearning.rounds=2")


def disarm(
    network: Network,
    variables: Variables,
    graph: NeuronGraph,
    *,
    key: jax.Array,
    config: DisarmSettings,
    axis_name: str | None = None,
) -> tuple[Variables, Anomalies]:
    """Repairs a network without any data, or returns it unchanged. Pure; jits; runs on a mapped axis with `axis_name`.

    Args:
      network: the functions of the network.
      variables: the suspicious network's variables.
      graph: its neuron graph.
      key: typed PRNG key.
      config: the method's settings.
      axis_name: mapped axis whose devices share each step's images.

    Returns:
      `(repaired variables, Anomalies)`.
    """
    setup = plans.set_up(network, graph, layers=config.layers, axis_name=axis_name)
    values = plans.run(plan(config), setup, {"victim": variables}, key=key)
    return values["disarmed"].variables, values["detected"]


def outcome(config: DisarmSettings, values: Mapping[str, Any]) -> Outcome:
    """The verdict, and which triggers were unlearned."""
    verdict = conclude(detecting.DETECTOR, config, values)
    info, changes = values["disarmed"].info, values["changes"]
    names, rounds = config.detection.families, int(np.sum(info.done))
    counted = "1 round" if rounds == 1 else f"{rounds} rounds"
    changed = {name: change > 0 for name, change in changes.items()}
    scored, count = count_neurons(changed)
    triggers = _triggers(config, values)
    pairs = zip(triggers.family, triggers.target, strict=True)
    which = ", ".join(f"class {target}'s {names[family].replace('_', ' ')}" for family, target in pairs)
    done = "nothing was changed"
    if verdict.backdoored == Backdoored.CANNOT_TELL:
        done += ", since the detector cannot tell whether there is a backdoor"
    if rounds:
        done = f"{which} triggers were unlearned, {counted}"
    if np.any(info.reverted):
        done = (
            f"nothing was changed: unlearning {which} triggers, {counted}, was in vain and is reverted; "
            "the network may have a class bias and no backdoor"
        )
    elif len(triggers.family) and not rounds:
        done += ", since no trigger of the size to unlearn has a high success rate"
    return Outcome(
        choice={"chosen_by": PROCEDURAL if verdict.backdoored == Backdoored.YES else "no class flagged"},
        done=done,
        did="changed",
        neurons={"scored": scored, "changed": count},
        touched=changed,
        scores=changes,
        scored="Which neurons unlearning changed",
        verdict=verdict,
        more={"detection": details(config, values), "unlearned_triggers": _unlearned_triggers(config, values)},
    )


def _unlearned_triggers(config: DisarmSettings, values: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """What was unlearned, a mapping for each class and family; None where nothing was."""
    info, triggers, families = values["disarmed"].info, _triggers(config, values), config.detection.families
    if not np.any(info.done):
        return None
    rounds = int(np.sum(info.done))
    return [
        {
            "class": int(triggers.target[index]),
            "family": families[family],
            "reverted": bool(info.reverted),
            "budget": rounded(triggers.budget[index]),
            "unit": FAMILIES[families[family]].unit,
            "success": [rounded(value) for value in np.max(info.success, axis=2)[:rounds, index]],
            "left": [rounded(value) for value in np.asarray(info.left)[:rounds, index]],
            "distortion": [rounded(value) for value in np.asarray(info.distortion)[:rounds]],
        }
        for index, family in enumerate(triggers.family)
    ]


def _triggers(config: DisarmSettings, values: Mapping[str, Any]) -> TriggersToUnlearn:
    """The triggers that were to be unlearned, as NumPy arrays."""
    triggers = to_unlearn(values["detected"], values["minimal"], config.detection.families, clean_evidence())
    wanted = np.asarray(triggers.wanted)
    return TriggersToUnlearn(*(np.asarray(leaf)[wanted] for leaf in triggers))


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
