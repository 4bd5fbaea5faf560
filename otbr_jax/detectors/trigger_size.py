"""Trigger size: flags the class whose minimal triggers are too small, whose margin is too large, or that has a bias.

For every class and trigger family the smallest trigger is inverted that turns images of other classes into the class,
as Neural Cleanse does for patches; for every class also the maximum margin is searched, as in MM-BD. Both, and how
often the network predicts the class, are compared with clean networks. Procedural images take the place of clean ones,
so that no data is needed. See `otbr_jax.detectors.anomalies` for the scores, and `otbr_jax.detectors.calibration` for
the clean networks, which the threshold and p-values come from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.detectors.anomalies import CLASS_BIAS, MAXIMUM_MARGIN, UNLEARN, Anomalies, find_anomalies, z_scores
from otbr_jax.detectors.calibration import CleanEvidence, calibration_of
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
_FEW = 20  # classes: how many a user is advised to search where there are more
PROCEDURAL = "procedural images"
"""What triggers are inverted and unlearned on, in words."""


@settings("images")
class ImagesConfig:
    """The procedural images that triggers are inverted and unlearned on."""

    made: int = field(default=3000, at_least=2, doc="how many are made.")
    images: int = field(default=1000, at_least=1, doc="how many of them are kept, balanced by predicted class.")

    def check(self) -> None:
        """No more are kept than are made."""
        if self.images > self.made:
            raise wrong(self, "images", f"at most {self.made}, images.made")


@settings("detection")
class DetectionConfig:
    """When a class is flagged."""

    families: tuple[str, ...] = field(
        default=tuple(FAMILIES),
        choices=tuple(FAMILIES),
        doc="trigger families that are inverted; see `otbr_jax.triggers`.",
    )
    threshold: float = field(
        default=3.5,
        above=0,
        doc="the anomaly score from which a class is flagged, in standard deviations of clean networks.",
    )
    share: float = field(
        default=0.6,
        at_least=0,
        at_most=1,
        doc="triggers are unlearned of families with at least this share of the suspect's largest evidence.",
    )
    budget: float = field(
        default=0.5,
        at_least=0,
        at_most=1,
        doc="size of the triggers that are unlearned: between the suspect's minimal trigger size (0) and the median "
        "over classes (1), as logarithms.",
    )
    unlearn: str = field(
        formerly="closed",
        default="suspect",
        choices=UNLEARN,
        doc="whose triggers are unlearned: those of a flagged `suspect`; or of `all` classes those that are smaller "
        "than in clean networks, whatever the verdict. At most as many as there are families, the most anomalous ones.",
    )

    def check(self) -> None:
        """At least one family is inverted."""
        if not self.families:
            raise wrong(self, "families", f"at least one of {[*FAMILIES]}", found="none")


@settings("")
class TriggerSizeSettings:
    """All settings of the detector `trigger_size`."""

    images: ImagesConfig = field(
        formerly="pictures", default=ImagesConfig(), doc="what takes the place of clean images."
    )
    inversion: InversionConfig = field(
        default=InversionConfig(), formerly="reach", doc="how minimal triggers are inverted."
    )
    margin: MarginConfig = field(default=MarginConfig(), doc="how maximum margins are searched.")
    detection: DetectionConfig = field(default=DetectionConfig(), doc="when a class is flagged.")


def make_procedural(
    setup: Setup, settings: ImagesConfig, *, victim: Variables, key: jax.Array, report: Report | None
) -> PredictedImages:
    """Procedural images with their predictions; `info` is the share of all that is predicted as each class."""
    del report
    network = setup.network
    make_key, take_key = jax.random.split(key)
    images = procedural(make_key, images=settings.made, image_shape=network.image_shape)
    predictions = predict(network, victim, images, batch_size=200)
    kept = balanced_sample(predictions, classes=network.num_classes, images=settings.images, key=take_key)
    frequencies = jnp.bincount(predictions, length=network.num_classes) / settings.made
    return PredictedImages(Batch(images[kept], predictions[kept]), frequencies)


class InversionSettings(NamedTuple):
    """The settings of `screen_classes` and `invert_minimal`."""

    inversion: InversionConfig
    families: tuple[str, ...]


def switch_of(setup: Setup, families: tuple[str, ...]) -> FamilySwitch:
    """The trigger families of these names, as one switch."""
    return FamilySwitch(tuple(FAMILIES[name] for name in families), setup.network.image_shape)


def screen_classes(
    setup: Setup,
    settings: InversionSettings,
    *,
    victim: Variables,
    procedural: PredictedImages,
    key: jax.Array,
    report: Report | None,
) -> ScreenedClasses:
    """Chooses the classes that triggers are inverted for, and where their inversions start."""
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
    settings: InversionSettings,
    *,
    victim: Variables,
    procedural: PredictedImages,
    screened: ScreenedClasses,
    key: jax.Array,
    report: Report | None,
) -> MinimalTriggers:
    """Inverts a minimal trigger of every family for every screened class."""
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
    """The maximum margin of each screened class, `[searched]`: how far its logit can be raised above all others."""
    return maximum_margins(
        setup.network, victim, classes=screened.classes,
        key=key, config=settings, axis_name=setup.axis_name, on_step=report,
    )  # fmt: skip


class ScoringSettings(NamedTuple):
    """The settings of `detect`: when a class is flagged, and the evidence of clean networks."""

    detection: DetectionConfig
    clean_evidence: CleanEvidence


def detect(
    setup: Setup,
    settings: ScoringSettings,
    *,
    procedural: PredictedImages,
    minimal: MinimalTriggers,
    maximum_margins: jax.Array,
    **_: Any,
) -> Anomalies:
    """Scores the classes that were searched, and flags one or none; others have the score 0."""
    detection = settings.detection
    return find_anomalies(
        minimal.size,
        maximum_margins,
        procedural.info[minimal.classes],
        clean_evidence=settings.clean_evidence,
        families=detection.families,
        threshold=detection.threshold,
        share=detection.share,
        budget=detection.budget,
        unlearn=detection.unlearn,
        classes=minimal.classes,
        num_classes=setup.network.num_classes,
    )


def clean_evidence() -> CleanEvidence:
    """The evidence of clean networks, as the calibration file has it."""
    return calibration_of(NAME).evidence


def plan(config: TriggerSizeSettings) -> Plan:
    """procedural -> screened -> minimal -> margins -> detected."""
    inversion = InversionSettings(config.inversion, config.detection.families)
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
            inversion,
            key="reached",
            shown=Shown("screening classes", lighter="inversion.images"),
        ),
        Step(
            "minimal",
            invert_minimal,
            needs("victim", "procedural", "screened"),
            inversion,
            key="reached",
            shown=Shown(
                "inverting minimal triggers",
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
                "searching maximum margins", total=partial(_searched, config), unit="class", lighter="margin.images"
            ),
        ),
        Step(
            "detected",
            detect,
            needs("procedural", "minimal", maximum_margins="margins"),
            ScoringSettings(config.detection, clean_evidence()),
            shown=Shown(
                "anomaly scores",
                tell=lambda settings, anomalies: in_words(
                    with_enough_classes(_verdict(settings.detection, anomalies), FEWEST)
                ),
            ),
        ),
    )


def scan_work(config: TriggerSizeSettings, setup: Setup) -> Work:
    """The work of all steps together."""
    inversion, margin, families = config.inversion, config.margin, len(config.detection.families)
    classes, passes = _searched(config, setup), config.images.made + families * inversion.starts * inversion.images
    gradients = classes * margin.steps * margin.images + _steps(config, setup) * inversion.images
    if classes < setup.network.num_classes:
        gradients += UPHILL * setup.network.num_classes
    what = f"inverting triggers of {families} families for {classes:,} classes"
    less = "--config.detection.families=patch,additive"
    return Work(what, passes, gradients, less if classes <= _FEW else f"--config.inversion.among={_FEW}, {less}")


def _searched(config: TriggerSizeSettings, setup: Setup) -> int:
    """How many classes are searched."""
    return min(config.inversion.among or setup.network.num_classes, setup.network.num_classes)


def _steps(config: TriggerSizeSettings, setup: Setup) -> int:
    """How many steps all inversions take together."""
    count = _searched(config, setup)
    return len(config.detection.families) * config.inversion.steps * (count + min(config.inversion.finalists, count))


def verdict(config: TriggerSizeSettings, values: Mapping[str, Any]) -> Verdict:
    """The verdict on the highest anomaly score of any class, in standard deviations of clean networks."""
    return _verdict(config.detection, values["detected"])


def _verdict(config: DetectionConfig, anomalies: Anomalies) -> Verdict:
    kinds, num_classes = (*config.families, MAXIMUM_MARGIN, CLASS_BIAS), len(anomalies.detected.scores)
    return verdict_of(
        anomalies.detected.scores,
        threshold=config.threshold,
        suspect=int(anomalies.detected.suspect),
        flagged=bool(anomalies.detected.flagged),
        evidence={
            kind: _of_every_class(anomalies.classes, numbers, num_classes)
            for kind, numbers in zip(kinds, np.asarray(anomalies.evidence), strict=True)
        },
    )


def _of_every_class(searched: Any, numbers: Any, num_classes: int) -> tuple[float | None, ...]:
    """A number of every class, None of those that were not searched."""
    known = dict(zip(np.asarray(searched).tolist(), numbers, strict=True))
    return tuple(rounded(known[label]) if label in known else None for label in range(num_classes))


def details(config: TriggerSizeSettings, values: Mapping[str, Any]) -> dict[str, Any]:
    """What the evidence was computed from, as plain JSON values: a number of each class, None of those not searched.

    `family`: the suspect's most anomalous one. `trigger_size`: by family, the size of the minimal trigger in the
    family's unit. `maximum_margin`: a difference of logits. `class_bias`: the share of the procedural images that is
    predicted as the class. `calibrated`: whether clean networks were scored with the same settings.
    """
    anomalies, minimal, names = values["detected"], values["minimal"], config.detection.families
    searched, num_classes = anomalies.classes, len(anomalies.detected.scores)
    place = int(np.flatnonzero(np.asarray(searched) == int(anomalies.detected.suspect))[0])
    return {
        "family": names[most_anomalous_families(config, anomalies)[place]],
        "trigger_size": {
            name: [*_of_every_class(searched, sizes, num_classes)]
            for name, sizes in zip(names, minimal.size, strict=True)
        },
        "maximum_margin": [*_of_every_class(searched, values["margins"], num_classes)],
        "class_bias": [rounded(share) for share in values["procedural"].info],
        "calibrated": is_calibrated(config),
    }


def is_calibrated(config: TriggerSizeSettings) -> bool:
    """Whether clean networks were scored with these settings: with any others trigger sizes and margins differ."""
    default = TriggerSizeSettings()
    inversion = dataclasses.replace(config.inversion, classes=default.inversion.classes)  # of memory alone
    searches = (config.images, inversion, config.margin, config.detection.families)
    return searches == (default.images, default.inversion, default.margin, default.detection.families)


def most_anomalous_families(config: TriggerSizeSettings, anomalies: Anomalies) -> np.ndarray:
    """The most anomalous trigger family of each class that was searched, int `[searched]`, indices."""
    scores = z_scores(anomalies.evidence, config.detection.families, clean_evidence())
    return np.argmax(np.asarray(scores)[:-2], axis=0)


def trigger_images(config: TriggerSizeSettings, values: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """How each class's most anomalous trigger changes an image, on mid-grey, each change scaled to its largest pixel.

    Returns:
      Masks `[classes, h, w, 1]` of ones, and patterns `[classes, h, w, c]` in [0, 1]; grey for classes not searched.
    """
    anomalies, minimal, images = values["detected"], values["minimal"], values["procedural"].batch.images
    switch = FamilySwitch(tuple(FAMILIES[name] for name in config.detection.families), tuple(images.shape[1:]))
    families = most_anomalous_families(config, anomalies)
    image = jnp.asarray(images[:1])

    def draw(trigger: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        index, latent, size = trigger
        change = (switch[index].apply(image, latent, size) - image)[0]
        return 0.5 + 0.5 * change / jnp.maximum(jnp.max(jnp.abs(change)), 1e-6)

    places = np.arange(len(families))
    latents, sizes = (np.asarray(value)[families, places] for value in (minimal.flat_latent, minimal.size))
    patterns = np.full((len(anomalies.detected.scores), *images.shape[1:]), 0.5, np.float32)
    patterns[np.asarray(minimal.classes)] = jax.jit(partial(jax.lax.map, draw))((families, latents, sizes))
    return np.broadcast_to(np.ones(1), (*patterns.shape[:3], 1)), patterns


DETECTOR = Detector(
    name=NAME,
    Config=TriggerSizeSettings,
    data="none",
    plan=plan,
    verdict=verdict,
    fewest_classes=FEWEST,
    triggers=trigger_images,
    is_calibrated=is_calibrated,
)
