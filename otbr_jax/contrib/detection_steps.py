"""The steps that several defences share: is a network backdoored, for which class, and which setting repairs it?"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.contrib.pruning_detection import (
    Findings,
    PruningDetectionConfig,
    count_predictions,
    detect_by_pruning,
)
from otbr_jax.defenses.otbr import OTBRConfig
from otbr_jax.detectors.detector import Detector
from otbr_jax.detectors.verdict import FEWEST, Verdict, in_words, verdict_of, with_enough_classes
from otbr_jax.inversion import InversionConfigs, InvertedTriggers, invert_classes
from otbr_jax.metrics import rounded
from otbr_jax.plan import Plan, Report, Setup, Shown, Step, needs
from otbr_jax.steps.fuse import align, interpolate
from otbr_jax.steps.procedural import PredictedImages
from otbr_jax.steps.prune import neurons_to_prune, prune
from otbr_jax.steps.score import Scores
from otbr_jax.types import Variables


def invert_all(
    setup: Setup,
    settings: InversionConfigs,
    *,
    victim: Variables,
    procedural: PredictedImages,
    key: jax.Array,
    report: Report | None,
) -> dict[str, InvertedTriggers]:
    """Inverts a trigger of every family for every class."""
    return invert_classes(setup.network, victim, procedural.batch, key=key, configs=settings, on_class=report)


class DetectionSettings(NamedTuple):
    """The settings of `detect`: how networks are pruned and fused, and what counts as evidence."""

    otbr: OTBRConfig
    detection: PruningDetectionConfig


def detect(
    setup: Setup,
    settings: DetectionSettings,
    *,
    victim: Variables,
    scores: Scores,
    procedural: PredictedImages,
    inverted: Mapping[str, InvertedTriggers],
    key: jax.Array,
    report: Report | None,
) -> Findings:
    """Scores the classes, and chooses the setting that leaves little of the suspect, by pruning and fusing at each."""
    counts, lams = settings_arrays(setup, settings.detection)
    predictions = map_settings(
        setup,
        victim,
        scores,
        lambda fused: count_predictions(setup.network, fused, procedural.batch, inverted["patch"]),
        counts=counts,
        lams=lams,
        config=settings.otbr,
        key=key,
        on_setting=report,
    )
    return detect_by_pruning(inverted, predictions, config=settings.detection)


def settings_arrays(setup: Setup, config: PruningDetectionConfig) -> tuple[jax.Array, jax.Array]:
    """The numbers of neurons `[gammas]` and the lambdas `[lambdas]` that are tried."""
    counts = [neurons_to_prune(gamma, setup.neurons) for gamma in config.gamma]
    return jnp.array(counts, jnp.int32), jnp.array(config.lam, jnp.float32)


def detection_steps(config: PruningDetectionConfig, otbr: OTBRConfig, *, images: str) -> tuple[Step, Step]:
    """The steps `inverted` and `detected`; `images` is the step whose images and predictions they use."""
    return (
        Step(
            "inverted",
            invert_all,
            needs("victim", procedural=images),
            config.searches,
            shown=Shown("inverting triggers", total=lambda setup: setup.network.num_classes, unit="class"),
        ),
        Step(
            "detected",
            detect,
            needs("victim", "scores", "inverted", procedural=images),
            DetectionSettings(otbr, config),
            key="fused",
            shown=Shown(
                "trying gamma x lambda",
                total=len(config.gamma),
                unit="gamma",
                tell=lambda settings, findings: in_words(
                    with_enough_classes(_verdict(settings.detection, findings), FEWEST)
                ),
            ),
        ),
    )


def pruning_detector(
    name: str, config: type, *, data: str, plan: Callable[[Any], Plan], is_calibrated: Callable[[Any], bool]
) -> Detector:
    """The detector of a defence that has these steps, and settings `detection`.

    Args:
      name: of the defence.
      config: its settings.
      data: what it needs beside the network.
      plan: the defence's own; the detector runs its steps up to `detected`.
      is_calibrated: see `Detector`.
    """

    def plan_of_detection(config: Any) -> Plan:
        steps = plan(config)
        return steps[: [step.name for step in steps].index("detected") + 1]

    return Detector(
        name=name,
        Config=config,
        data=data,
        plan=plan_of_detection,
        verdict=lambda config, values: _verdict(config.detection, values["detected"]),
        fewest_classes=FEWEST,
        triggers=lambda config, values: inverted_patches(values),
        is_calibrated=is_calibrated,
    )


def _verdict(config: PruningDetectionConfig, findings: Findings) -> Verdict:
    scores, suspect, flagged = findings.detected
    return verdict_of(scores, threshold=config.threshold, suspect=int(suspect), flagged=bool(flagged))


def map_settings(
    setup: Setup,
    victim: Variables,
    scores: Scores,
    function: Callable[[Variables], Any],
    *,
    counts: jax.Array,
    lams: jax.Array,
    config: OTBRConfig,
    key: jax.Array,
    on_setting: Report | None = None,
) -> Any:
    """Maps a function over the networks fused at every pair of a gamma and a lambda, gammas first, one at a time.

    Args:
      setup: the network, and the layers to prune and fuse.
      victim: the suspicious network's variables.
      scores: neuron weight changes.
      function: of a fused network's variables; returns a pytree of arrays.
      counts: int `[gammas]`, how many neurons each gamma prunes.
      lams: float32 `[lambdas]`.
      config: the method's settings, but for gamma and lambda.
      key: typed PRNG key, which only random masses need.
      on_setting: called on the host after each gamma; None traces no callback.
    """

    def one_gamma(count: jax.Array) -> Any:
        pruned, info = prune(victim, scores, setup.layers, count=count)
        aligned = align(pruned, victim, scores, info.pruned, setup.layers, config=config.fusion, key=key)
        results = jax.lax.map(lambda lam: function(interpolate(victim, aligned, lam=lam)), lams)
        if on_setting is not None:
            jax.debug.callback(on_setting)
        return results

    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), jax.lax.map(one_gamma, counts))


def is_flagged(values: Mapping[str, Any]) -> bool:
    """Whether a run may change the network: a class is flagged, or no detector ran."""
    return "detected" not in values or bool(values["detected"].detected.flagged)


def plain_findings(config: PruningDetectionConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """The triggers of each class, by family, and what each setting leaves, as plain JSON values."""
    findings, triggers = values["detected"], values["inverted"]
    return {
        "trigger_size": {name: _numbers(each.size) for name, each in triggers.items()},
        "trigger_success": {name: _numbers(each.success) for name, each in triggers.items()},
        "settings": [
            {
                "gamma": gamma,
                "lambda": lam,
                "agreement": rounded(np.mean(findings.predictions.agreement[index])),
                "remaining": rounded(findings.remaining[index]),
            }
            for index, (gamma, lam) in enumerate(itertools.product(config.gamma, config.lam))
        ],
    }


def inverted_patches(values: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The patch of each class: masks `[classes, h, w, 1]` and patterns `[classes, h, w, c]` in [0, 1]."""
    patches = values["inverted"]["patch"].parameters
    return np.asarray(patches.mask), np.asarray(patches.pattern)


def _numbers(values: Sequence[Any] | jax.Array) -> list[float]:
    return [rounded(value) for value in values]
