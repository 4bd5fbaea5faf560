"""Disarm: find the class that some trigger reaches too cheaply, and teach the network that the trigger means nothing.

No data and no oracle. Procedural pictures take the place of images, the network's own logits that of labels. The class
stays, since the network is its own teacher on pictures without a trigger.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax import plan as plans
from otbr_jax.defenses.defense import Defense, Detection, Outcome, count_neurons, settled
from otbr_jax.defenses.judging import Pictures
from otbr_jax.detectors.shortcuts import ANSWERS, CLOSED, FEWEST, MARGIN, Suspicion, suspect_by_short_cuts, unusual
from otbr_jax.graph.choose import LAYERS
from otbr_jax.graph.graph import NeuronGraph
from otbr_jax.plan import Plan, Report, Setup, Step, needs
from otbr_jax.settings import field, settings, wrong
from otbr_jax.steps.margin import MarginConfig, largest_margins
from otbr_jax.steps.procedural import balanced, procedural
from otbr_jax.steps.reach import ReachConfig, Reached, reach_costs
from otbr_jax.steps.score import neuron_weight_changes
from otbr_jax.steps.teach import ShortCuts, TeachingConfig, TeachingInfo, teach
from otbr_jax.triggers import FAMILIES, Bank
from otbr_jax.types import Batch, Network, Variables

PROCEDURAL = "procedural pictures"
"""What a network is searched and taught on, in words."""


@settings("pictures")
class PicturesConfig:
    """The pictures that a network is searched and taught on."""

    made: int = field(default=3000, at_least=2, doc="how many are made.")
    images: int = field(
        default=1000, at_least=1, doc="how many are taken, balanced by what the network answers them with."
    )

    def check(self) -> None:
        """No more are taken than are made."""
        if self.images > self.made:
            raise wrong(self, "images", f"at most {self.made}, pictures.made")


@settings("detection")
class DetectionConfig:
    """When a class stands out."""

    families: tuple[str, ...] = field(
        default=tuple(FAMILIES), choices=tuple(FAMILIES), doc="what triggers may be; see `otbr_jax.triggers`."
    )
    threshold: float = field(
        default=3.5,
        above=0,
        doc="the suspicion from which a class stands out, in standard deviations over what is usual in clean networks.",
    )
    share: float = field(
        default=0.6,
        at_least=0,
        at_most=1,
        doc="triggers of each family with at least this share of the most telling family's suspicion are taught.",
    )
    budget: float = field(
        default=0.5,
        at_least=0,
        at_most=1,
        doc="of the triggers that are taught: where between what the suspect costs (0) and what classes cost in the "
        "median (1), as logarithms.",
    )
    closed: str = field(
        default="suspect",
        choices=CLOSED,
        doc="whose short cuts are closed: those of the class that stands out, or those of `all` classes that are "
        "cheaper than in clean networks, whatever the verdict; as many as there are families, the most telling ones.",
    )

    def check(self) -> None:
        """Something is searched."""
        if not self.families:
            raise wrong(self, "families", f"at least one of {[*FAMILIES]}", found="none")


@settings("")
class DisarmSettings:
    """All settings of the defence `disarm`."""

    pictures: PicturesConfig = field(default=PicturesConfig(), doc="what takes the place of images.")
    reach: ReachConfig = field(default=ReachConfig(), doc="how the cheapest triggers are searched.")
    margin: MarginConfig = field(default=MarginConfig(), doc="how the largest margins are searched.")
    detection: DetectionConfig = field(default=DetectionConfig(), doc="when a class stands out.")
    teaching: TeachingConfig = field(default=TeachingConfig(), doc="how the network is taught.")
    layers: str = field(default="auto", choices=LAYERS, doc="whose neurons the report shows; see `choose_layers`.")


class Disarmed(NamedTuple):
    """The network after its lessons, and how they went."""

    variables: Variables
    info: TeachingInfo


def make_pictures(
    setup: Setup, settings: PicturesConfig, *, victim: Variables, key: jax.Array, report: Report | None
) -> Pictures:
    """Procedural pictures, what the network answers them with, and how often it answered each class at all."""
    del report
    network = setup.network
    make_key, take_key = jax.random.split(key)
    made = procedural(make_key, images=settings.made, image_shape=network.image_shape)
    answers = jax.lax.map(lambda image: jnp.argmax(network.answer(victim, image[None])[0]), made, batch_size=200)
    taken = balanced(answers, classes=network.num_classes, images=settings.images, key=take_key)
    often = jnp.bincount(answers, length=network.num_classes) / settings.made
    return Pictures(Batch(made[taken], answers[taken].astype(jnp.int32)), often)


class Searching(NamedTuple):
    """What `search_reach` is given."""

    reach: ReachConfig
    families: tuple[str, ...]


def bank_of(setup: Setup, families: tuple[str, ...]) -> Bank:
    """The families of these names."""
    return Bank(tuple(FAMILIES[name] for name in families), setup.network.image_shape)


def search_reach(
    setup: Setup, settings: Searching, *, victim: Variables, pictures: Pictures, key: jax.Array, report: Report | None
) -> Reached:
    """What every class costs by triggers of every family."""
    bank = bank_of(setup, settings.families)
    batch = Batch(*pictures.batch)
    return reach_costs(setup.network, victim, batch, bank, key=key, config=settings.reach, on_step=report)


def search_margins(
    setup: Setup, settings: MarginConfig, *, victim: Variables, key: jax.Array, report: Report | None
) -> jax.Array:
    """How far any picture can lift each class, `[classes]`."""
    return largest_margins(setup.network, victim, key=key, config=settings, on_step=report)


def detect(
    setup: Setup, settings: DetectionConfig, *, pictures: Pictures, reached: Reached, margins: jax.Array, **_: Any
) -> Suspicion:
    """Which class stands out."""
    del setup
    return suspect_by_short_cuts(
        reached.cost,
        margins,
        pictures.info,
        families=settings.families,
        threshold=settings.threshold,
        share=settings.share,
        budget=settings.budget,
        closed=settings.closed,
    )


def short_cuts(found: Suspicion, reached: Reached, families: tuple[str, ...]) -> ShortCuts:
    """What is to be closed: of what is wanted the most telling, as many as there are families."""
    telling = jnp.where(found.wanted, unusual(found.evidence, families)[: len(families)], -jnp.inf)
    family, target = jnp.unravel_index(jnp.argsort(-telling, axis=None)[: len(families)], telling.shape)
    of = (family, target)
    return ShortCuts(family, target, reached.cost[of], found.budget[of], reached.row[of], found.wanted[of])


class Lessons(NamedTuple):
    """What `disarm_suspect` is given."""

    teaching: TeachingConfig
    families: tuple[str, ...]


def disarm_suspect(
    setup: Setup,
    settings: Lessons,
    *,
    victim: Variables,
    pictures: Pictures,
    reached: Reached,
    detected: Suspicion,
    key: jax.Array,
    report: Report | None,
) -> Disarmed:
    """The network, taught that triggers of its short cuts mean nothing; as it is if it has none."""
    bank, closing = bank_of(setup, settings.families), short_cuts(Suspicion(*detected), reached, settings.families)
    batch = Batch(*pictures.batch)
    return Disarmed(
        *teach(setup.network, victim, batch, bank, closing, key=key, config=settings.teaching, on_step=report)
    )


def change(setup: Setup, settings: None, *, victim: Variables, disarmed: Disarmed, **_: Any) -> dict[str, jax.Array]:
    """By how much each neuron's weights moved."""
    return neuron_weight_changes(victim, disarmed.variables, setup.layers)


def plan(config: DisarmSettings) -> Plan:
    """pictures -> reached -> margins -> detected -> disarmed -> changes."""
    families, reach, teaching = config.detection.families, config.reach, config.teaching

    def searched(setup: Setup) -> int:
        rounds = [-(-count // reach.classes) for count in (setup.network.num_classes, reach.finalists)]
        return len(families) * reach.steps * sum(rounds)

    lessons = teaching.rounds * (teaching.search.steps + teaching.steps)
    return (
        Step("pictures", make_pictures, needs("victim"), config.pictures, "making pictures"),
        Step(
            "reached",
            search_reach,
            needs("victim", "pictures"),
            Searching(reach, families),
            "searching the cheapest triggers",
            total=searched,
        ),
        Step(
            "margins",
            search_margins,
            needs("victim"),
            config.margin,
            "searching the largest margins",
            total=lambda setup: setup.network.num_classes,
            unit="class",
        ),
        Step("detected", detect, needs("pictures", "reached", "margins"), config.detection, "which class stands out"),
        Step(
            "disarmed",
            disarm_suspect,
            needs("victim", "pictures", "reached", "detected"),
            Lessons(teaching, families),
            "searching and teaching",
            total=lessons,
        ),
        Step("changes", change, needs("victim", "disarmed"), title="what moved"),
    )


def disarm(
    network: Network, variables: Variables, graph: NeuronGraph, *, key: jax.Array, config: DisarmSettings
) -> tuple[Variables, Suspicion]:
    """Repairs a network without any data, or leaves it as it is. Pure; jits.

    Args:
      network: the functions of the network.
      variables: the suspicious network's variables.
      graph: its neuron graph.
      key: typed PRNG key.
      config: the method's settings.

    Returns:
      `(repaired variables, Suspicion)`.
    """
    setup = plans.set_up(network, graph, layers=config.layers)
    found = plans.run(plan(config), setup, {"victim": variables}, key=key)
    return found["disarmed"].variables, found["detected"]


def outcome(config: DisarmSettings, values: Mapping[str, Any]) -> Outcome:
    """What stood out, and what was taught."""
    found, info, changes = values["detected"], values["disarmed"].info, values["changes"]
    names, rounds = config.detection.families, int(np.sum(info.taught))
    moved = {name: change > 0 for name, change in changes.items()}
    scored, touched = count_neurons(moved)
    closing = _closing(config, values)
    pairs = zip(closing.family, closing.target, strict=True)
    taught = ", ".join(f"class {target}'s {names[family]}" for family, target in pairs)
    done = "nothing was changed"
    if len(found.suspicion) < FEWEST:
        done += f", since of {len(found.suspicion)} classes none can stand out"
    if rounds:
        done = f"{taught} triggers were taught to mean nothing, {rounds} rounds"
    if np.any(info.undone):
        done = (
            f"nothing was changed: {rounds} rounds of lessons against {taught} triggers were in vain and are undone; "
            "the class may be what the network answers when in doubt, and no backdoor"
        )
    elif len(closing.family) and not rounds:
        done += ", since no trigger within the budget of a lesson works"
    return Outcome(
        choice={"chosen_by": PROCEDURAL if bool(found.stands_out) else "no class standing out"},
        done=done,
        did="moved",
        neurons={"scored": scored, "moved": touched},
        touched=moved,
        scores=changes,
        scored="Which neurons the lessons moved",
        more={"judgement": summarize(config, values), "taught": _lessons(config, values)},
        triggers=_pictured(config, values),
    )


def summarize(config: DisarmSettings, values: Mapping[str, Any]) -> dict[str, Any]:
    """How suspicious each class is and why, as plain JSON values."""
    found, reached, names = values["detected"], values["reached"], config.detection.families
    suspect = int(found.suspect)
    return {
        "by": PROCEDURAL,
        "stands_out": bool(found.stands_out),
        "suspect": suspect,
        "suspicion": [settled(value) for value in found.suspicion],
        "threshold": config.detection.threshold,
        "family": names[_telling(config, found)[suspect]],
        "reach_cost": {name: [settled(value) for value in row] for name, row in zip(names, reached.cost, strict=True)},
        "margin": [settled(value) for value in values["margins"]],
        "evidence": {
            name: [settled(value) for value in row]
            for name, row in zip((*names, MARGIN, ANSWERS), np.asarray(found.evidence), strict=True)
        },
        "answers": [settled(value) for value in values["pictures"].info],
    }


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
            "budget": settled(closing.budget[index]),
            "unit": FAMILIES[families[family]].unit,
            "success": [settled(value) for value in np.max(info.success, axis=2)[:rounds, index]],
            "left": [settled(value) for value in np.asarray(info.left)[:rounds, index]],
            "distortion": [settled(value) for value in np.asarray(info.distortion)[:rounds]],
        }
        for index, family in enumerate(closing.family)
    ]


def _closing(config: DisarmSettings, values: Mapping[str, Any]) -> ShortCuts:
    """What was closed, without what was not wanted."""
    closing = short_cuts(values["detected"], values["reached"], config.detection.families)
    wanted = np.asarray(closing.wanted)
    return ShortCuts(*(np.asarray(leaf)[wanted] for leaf in closing))


def detection(config: DisarmSettings) -> Detection:
    """The steps up to `detected`."""
    names = [step.name for step in plan(config)]
    steps = plan(config)[: names.index("detected") + 1]
    return Detection(steps, partial(summarize, config), partial(_pictured, config))


def _telling(config: DisarmSettings, found: Suspicion) -> np.ndarray:
    """Each class's most telling family, by its index."""
    return np.argmax(np.asarray(unusual(found.evidence, config.detection.families))[:-2], axis=0)


def _pictured(config: DisarmSettings, values: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """What each class's most telling trigger does to a picture, on grey, at its own scale.

    Full masks `[classes, h, w, 1]`, and pictures `[classes, h, w, c]` in [0, 1].
    """
    found, reached, images = values["detected"], values["reached"], values["pictures"].batch[0]
    bank = Bank(tuple(FAMILIES[name] for name in config.detection.families), tuple(images.shape[1:]))
    telling = jnp.asarray(_telling(config, found))

    def one(index: jax.Array, row: jax.Array, cost: jax.Array) -> jax.Array:
        change = (bank.apply(index, row, cost, jnp.asarray(images[:1])) - images[:1])[0]
        return 0.5 + 0.5 * change / jnp.maximum(jnp.max(jnp.abs(change)), 1e-6)

    classes = jnp.arange(len(telling))
    rows, costs = (jnp.asarray(value)[telling, classes] for value in (reached.row, reached.cost))
    shown = np.asarray(jax.jit(jax.vmap(one))(telling, rows, costs))
    return np.ones((*shown.shape[:3], 1)), shown


DEFENSE = Defense(
    name="disarm",
    Config=DisarmSettings,
    data="none",
    layers=lambda config: config.layers,
    plan=plan,
    networks=lambda config: ("victim", "disarmed"),
    outcome=outcome,
    detection=detection,
)
