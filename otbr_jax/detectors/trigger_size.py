"""Short cuts: the class that some trigger of some family reaches too cheaply, or that some picture lifts too far.

No data. Procedural pictures take the place of images; `otbr_jax.detectors.anomalies` says what is compared with what.
The threshold was rounded on clean networks, which a p-value comes from too (`otbr_jax.detectors.calibration`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.detectors.anomalies import ANSWERS, CLOSED, MARGIN, Anomalies, find_anomalies, unusual
from otbr_jax.detectors.calibration import Usual, calibration_of
from otbr_jax.detectors.detector import Detector
from otbr_jax.detectors.verdict import FEWEST, Verdict, in_words, verdict_of, with_enough_classes
from otbr_jax.inversion import InversionConfig, MinimalTriggers, ScreenedClasses, minimal_triggers
from otbr_jax.metrics import rounded
from otbr_jax.plan import Plan, Report, Setup, Shown, Step, Work, needs
from otbr_jax.settings import field, settings, wrong
from otbr_jax.steps.margin import MarginConfig, maximum_margins
from otbr_jax.steps.predictions import predict
from otbr_jax.steps.procedural import PredictedImages, balanced_sample, procedural
from otbr_jax.steps.screen import UPHILL, screen
from otbr_jax.triggers import FAMILIES, FamilySwitch
from otbr_jax.types import Batch, Variables

NAME = "trigger_size"
_FEW = 20  # classes: how many a person is advised to search where there are more
PROCEDURAL = "procedural pictures"
"""What a network is searched and taught on, in words."""


@settings("images")
class ImagesConfig:
    """The pictures that a network is searched and taught on."""

    made: int = field(default=3000, at_least=2, doc="how many are made.")
    images: int = field(
        default=1000, at_least=1, doc="how many are taken, balanced by what the network answers them with."
    )

    def check(self) -> None:
        """No more are taken than are made."""
        if self.images > self.made:
            raise wrong(self, "images", f"at most {self.made}, images.made")


@settings("detection")
class DetectionConfig:
    """When a class is flagged."""

    families: tuple[str, ...] = field(
        default=tuple(FAMILIES), choices=tuple(FAMILIES), doc="what triggers may be; see `otbr_jax.triggers`."
    )
    threshold: float = field(
        default=3.5,
        above=0,
        doc="the score from which a class is flagged, in standard deviations over what is usual in clean networks.",
    )
    share: float = field(
        default=0.6,
        at_least=0,
        at_most=1,
        doc="triggers of each family with at least this share of the most telling family's evidence are taught.",
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
        doc="whose short cuts are closed: those of the class that is flagged, or those of `all` classes that are "
        "cheaper than in clean networks, whatever the verdict; as many as there are families, the most telling ones.",
    )

    def check(self) -> None:
        """Something is searched."""
        if not self.families:
            raise wrong(self, "families", f"at least one of {[*FAMILIES]}", found="none")


@settings("")
class TriggerSizeSettings:
    """All settings of the detector `trigger_size`."""

    images: ImagesConfig = field(formerly="pictures", default=ImagesConfig(), doc="what takes the place of images.")
    inversion: InversionConfig = field(
        default=InversionConfig(), formerly="reach", doc="how the cheapest triggers are searched."
    )
    margin: MarginConfig = field(default=MarginConfig(), doc="how the largest margins are searched.")
    detection: DetectionConfig = field(default=DetectionConfig(), doc="when a class is flagged.")


def make_procedural(
    setup: Setup, settings: ImagesConfig, *, victim: Variables, key: jax.Array, report: Report | None
) -> PredictedImages:
    """Procedural pictures, what the network answers them with, and how often it answered each class at all."""
    del report
    network = setup.network
    make_key, take_key = jax.random.split(key)
    made = procedural(make_key, images=settings.made, image_shape=network.image_shape)
    answered = predict(network, victim, made, batch_size=200)
    taken = balanced_sample(answered, classes=network.num_classes, images=settings.images, key=take_key)
    often = jnp.bincount(answered, length=network.num_classes) / settings.made
    return PredictedImages(Batch(made[taken], answered[taken]), often)


class Searching(NamedTuple):
    """What `screen_classes` and `invert_minimal` are given."""

    inversion: InversionConfig
    families: tuple[str, ...]


def switch_of(setup: Setup, families: tuple[str, ...]) -> FamilySwitch:
    """The families of these names."""
    return FamilySwitch(tuple(FAMILIES[name] for name in families), setup.network.image_shape)


def screen_classes(
    setup: Setup,
    settings: Searching,
    *,
    victim: Variables,
    procedural: PredictedImages,
    key: jax.Array,
    report: Report | None,
) -> ScreenedClasses:
    """Which classes are searched."""
    del report
    switch = switch_of(setup, settings.families)
    return screen(
        setup.network,
        victim,
        procedural.batch,
        procedural.info,
        switch,
        key=key,
        config=settings.inversion,
        axis_name=setup.axis_name,
    )


def invert_minimal(
    setup: Setup,
    settings: Searching,
    *,
    victim: Variables,
    procedural: PredictedImages,
    screened: ScreenedClasses,
    key: jax.Array,
    report: Report | None,
) -> MinimalTriggers:
    """What every class costs by triggers of every family."""
    switch = switch_of(setup, settings.families)
    return minimal_triggers(
        setup.network, victim, procedural.batch, switch, screened,
        key=key, config=settings.inversion, axis_name=setup.axis_name, on_step=report,
    )  # fmt: skip


def search_margins(
    setup: Setup,
    settings: MarginConfig,
    *,
    victim: Variables,
    screened: ScreenedClasses,
    key: jax.Array,
    report: Report | None,
) -> jax.Array:
    """How far any picture can lift each class that is searched, `[searched]`."""
    return maximum_margins(
        setup.network, victim, classes=screened.classes,
        key=key, config=settings, axis_name=setup.axis_name, on_step=report,
    )  # fmt: skip


class Detecting(NamedTuple):
    """What `detect` is given: when a class is flagged, and what is usual in clean networks."""

    detection: DetectionConfig
    usual: Usual


def detect(
    setup: Setup,
    settings: Detecting,
    *,
    procedural: PredictedImages,
    minimal: MinimalTriggers,
    margins: jax.Array,
    **_: Any,
) -> Anomalies:
    """Which class is flagged of those that were searched; others have the score 0."""
    detection = settings.detection
    return find_anomalies(
        minimal.size,
        margins,
        procedural.info[minimal.classes],
        usual=settings.usual,
        families=detection.families,
        threshold=detection.threshold,
        share=detection.share,
        budget=detection.budget,
        closed=detection.closed,
        classes=minimal.classes,
        of=setup.network.num_classes,
    )


def usual_evidence() -> Usual:
    """What evidence is usual in clean networks, as the file of the calibration says."""
    return calibration_of(NAME).usual


def plan(config: TriggerSizeSettings) -> Plan:
    """procedural -> screened -> minimal -> margins -> detected."""
    searching = Searching(config.inversion, config.detection.families)
    return (
        Step(
            "procedural",
            make_procedural,
            needs("victim"),
            config.images,
            key="pictures",
            shown=Shown("making images", work=partial(scan_work, config), lighter="images.made"),
        ),
        Step(
            "screened",
            screen_classes,
            needs("victim", "procedural"),
            searching,
            key="reached",
            shown=Shown("screening classes", lighter="inversion.images"),
        ),
        Step(
            "minimal",
            invert_minimal,
            needs("victim", "procedural", "screened"),
            searching,
            key="reached",
            shown=Shown(
                "searching the cheapest triggers",
                total=partial(_steps, config),
                lighter="inversion.among, inversion.images or detection.families",
            ),
        ),
        Step(
            "margins",
            search_margins,
            needs("victim", "screened"),
            config.margin,
            shown=Shown(
                "searching the largest margins", total=partial(_searched, config), unit="class", lighter="margin.images"
            ),
        ),
        Step(
            "detected",
            detect,
            needs("procedural", "minimal", "margins"),
            Detecting(config.detection, usual_evidence()),
            shown=Shown(
                "which class is flagged",
                tell=lambda settings, found: in_words(with_enough_classes(_verdict(settings.detection, found), FEWEST)),
            ),
        ),
    )


def scan_work(config: TriggerSizeSettings, setup: Setup) -> Work:
    """What looking for a backdoor takes, all steps together."""
    inversion, margin, families = config.inversion, config.margin, len(config.detection.families)
    classes, pictures = _searched(config, setup), config.images.made + families * inversion.starts * inversion.images
    gradients = classes * margin.steps * margin.images + _steps(config, setup) * inversion.images
    if classes < setup.network.num_classes:
        gradients += UPHILL * setup.network.num_classes
    what = f"a search of {classes:,} classes by {families} families of triggers"
    less = "--config.detection.families=patch,additive"
    return Work(what, pictures, gradients, less if classes <= _FEW else f"--config.inversion.among={_FEW}, {less}")


def _searched(config: TriggerSizeSettings, setup: Setup) -> int:
    """How many classes are searched."""
    return min(config.inversion.among or setup.network.num_classes, setup.network.num_classes)


def _steps(config: TriggerSizeSettings, setup: Setup) -> int:
    """How many steps all searches take together."""
    count = _searched(config, setup)
    return len(config.detection.families) * config.inversion.steps * (count + min(config.inversion.finalists, count))


def verdict(config: TriggerSizeSettings, values: Mapping[str, Any]) -> Verdict:
    """The highest score of any class, in standard deviations."""
    return _verdict(config.detection, values["detected"])


def _verdict(config: DetectionConfig, found: Anomalies) -> Verdict:
    kinds, classes = (*config.families, MARGIN, ANSWERS), len(found.detected.scores)
    return verdict_of(
        found.detected.scores,
        threshold=config.threshold,
        suspect=int(found.detected.suspect),
        flagged=bool(found.detected.flagged),
        evidence={
            kind: _each(found.classes, row, classes)
            for kind, row in zip(kinds, np.asarray(found.evidence), strict=True)
        },
    )


def _each(searched: Any, row: Any, classes: int) -> tuple[float | None, ...]:
    """A number of every class, None of those that were not searched."""
    known = dict(zip(np.asarray(searched).tolist(), row, strict=True))
    return tuple(rounded(known[label]) if label in known else None for label in range(classes))


def measured(config: TriggerSizeSettings, values: Mapping[str, Any]) -> dict[str, Any]:
    """What the evidence comes from, as plain JSON values: numbers of each class, None of those not searched.

    `family`: the most telling one of the suspect. `trigger_size`: by family, what the cheapest trigger costs.
    `margin`: the largest. `answers`: shares of the procedural pictures. `usual`: whether the search is the one that
    clean networks were scored with.
    """
    found, minimal, names = values["detected"], values["minimal"], config.detection.families
    classes = len(found.detected.scores)
    place = int(np.flatnonzero(np.asarray(found.classes) == int(found.detected.suspect))[0])
    return {
        "family": names[telling_family(config, found)[place]],
        "trigger_size": {
            name: [*_each(found.classes, row, classes)] for name, row in zip(names, minimal.size, strict=True)
        },
        "margin": [*_each(found.classes, values["margins"], classes)],
        "answers": [rounded(value) for value in values["procedural"].info],
        "usual": is_usual(config),
    }


def is_usual(config: TriggerSizeSettings) -> bool:
    """Whether a search is the one that clean networks were scored with: any other finds other costs and margins."""
    usual = TriggerSizeSettings()
    inversion = dataclasses.replace(config.inversion, classes=usual.inversion.classes)  # of memory alone
    searched = (config.images, inversion, config.margin, config.detection.families)
    return searched == (usual.images, usual.inversion, usual.margin, usual.detection.families)


def telling_family(config: TriggerSizeSettings, found: Anomalies) -> np.ndarray:
    """The most telling family of each class that was searched, by its index."""
    return np.argmax(np.asarray(unusual(found.evidence, config.detection.families, usual_evidence()))[:-2], axis=0)


def pictured(config: TriggerSizeSettings, values: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """What each class's most telling trigger does to a picture, on grey, at its own scale.

    Full masks `[classes, h, w, 1]`, and pictures `[classes, h, w, c]` in [0, 1]; grey of classes not searched.
    """
    found, minimal, images = values["detected"], values["minimal"], values["procedural"].batch.images
    switch = FamilySwitch(tuple(FAMILIES[name] for name in config.detection.families), tuple(images.shape[1:]))
    telling = telling_family(config, found)
    picture = jnp.asarray(images[:1])

    def one(of: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        index, latent, size = of
        change = (switch[index].apply(picture, latent, size) - picture)[0]
        return 0.5 + 0.5 * change / jnp.maximum(jnp.max(jnp.abs(change)), 1e-6)

    searched = np.arange(len(telling))
    latents, sizes = (np.asarray(value)[telling, searched] for value in (minimal.flat_latent, minimal.size))
    shown = np.full((len(found.detected.scores), *images.shape[1:]), 0.5, np.float32)
    shown[np.asarray(minimal.classes)] = jax.jit(partial(jax.lax.map, one))((telling, latents, sizes))
    return np.broadcast_to(np.ones(1), (*shown.shape[:3], 1)), shown


DETECTOR = Detector(
    name=NAME,
    Config=TriggerSizeSettings,
    data="none",
    plan=plan,
    verdict=verdict,
    fewest_classes=FEWEST,
    triggers=pictured,
    is_usual=is_usual,
)
