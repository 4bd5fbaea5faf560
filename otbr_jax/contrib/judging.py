"""The steps that several defences share: is a network backdoored, for which class, and which setting leaves little?"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.contrib.judge import Findings, SuspicionConfig, answers, find_suspect
from otbr_jax.defenses.otbr import OTBRConfig
from otbr_jax.detectors.detector import Detector
from otbr_jax.detectors.verdict import FEWEST, Verdict, in_words, verdict_of, with_enough_classes
from otbr_jax.inversion import Inverted, Searches, invert_classes
from otbr_jax.metrics import rounded
from otbr_jax.plan import Plan, Report, Setup, Shown, Step, needs
from otbr_jax.steps.fuse import align, interpolate
from otbr_jax.steps.procedural import PredictedImages
from otbr_jax.steps.prune import neurons_to_prune, prune
from otbr_jax.steps.score import Scores
from otbr_jax.types import Variables


def search_triggers(
    setup: Setup,
    settings: Searches,
    *,
    victim: Variables,
    procedural: PredictedImages,
    key: jax.Array,
    report: Report | None,
) -> dict[str, Inverted]:
    """A trigger of every family for every class."""
    return invert_classes(setup.network, victim, procedural.batch, key=key, searches=settings, on_class=report)


class Judging(NamedTuple):
    """What `try_settings` is given: how networks are pruned and fused, and what counts as evidence."""

    otbr: OTBRConfig
    suspicion: SuspicionConfig


def try_settings(
    setup: Setup,
    settings: Judging,
    *,
    victim: Variables,
    scores: Scores,
    procedural: PredictedImages,
    inverted: Mapping[str, Inverted],
    key: jax.Array,
    report: Report | None,
) -> Findings:
    """Which class is flagged, and which setting leaves little of it."""
    counts, lams = sizes(setup, settings.suspicion)
    along = fuse_settings(
        setup,
        victim,
        scores,
        lambda fused: answers(setup.network, fused, procedural.batch, inverted["patch"]),
        counts=counts,
        lams=lams,
        config=settings.otbr,
        key=key,
        on_setting=report,
    )
    return find_suspect(inverted, along, config=settings.suspicion)


def sizes(setup: Setup, config: SuspicionConfig) -> tuple[jax.Array, jax.Array]:
    """The numbers of neurons `[gammas]` and the lambdas `[lambdas]` that are tried."""
    counts = [neurons_to_prune(gamma, setup.neurons) for gamma in config.gamma]
    return jnp.array(counts, jnp.int32), jnp.array(config.lam, jnp.float32)


def judging_steps(config: SuspicionConfig, otbr: OTBRConfig, *, images: str) -> tuple[Step, Step]:
    """The steps `inverted` and `detected`; `images` is the step whose images the network is asked about."""
    return (
        Step(
            "inverted",
            search_triggers,
            needs("victim", procedural=images),
            config.searches,
            shown=Shown("reverse-engineering triggers", total=lambda setup: setup.network.num_classes, unit="class"),
        ),
        Step(
            "detected",
            try_settings,
            needs("victim", "scores", "inverted", procedural=images),
            Judging(otbr, config),
            key="fused",
            shown=Shown(
                "trying gamma x lambda",
                total=len(config.gamma),
                unit="gamma",
                tell=lambda settings, found: in_words(with_enough_classes(_verdict(settings.suspicion, found), FEWEST)),
            ),
        ),
    )


def pruning_detector(
    name: str, config: type, *, data: str, plan: Callable[[Any], Plan], is_calibrated: Callable[[Any], bool]
) -> Detector:
    """How a defence with these steps, and settings `suspicion`, tells whether there is a backdoor.

    Args:
      name: of the defence.
      config: its settings.
      data: what it needs beside the network.
      plan: its own, of which the steps up to `detected` count: they change nothing that is returned.
      is_calibrated: see `Detector`.
    """

    def detecting(config: Any) -> Plan:
        steps = plan(config)
        return steps[: [step.name for step in steps].index("detected") + 1]

    return Detector(
        name=name,
        Config=config,
        data=data,
        plan=detecting,
        verdict=lambda config, values: _verdict(config.suspicion, values["detected"]),
        fewest_classes=FEWEST,
        triggers=lambda config, values: patches(values),
        is_calibrated=is_calibrated,
    )


def _verdict(config: SuspicionConfig, found: Findings) -> Verdict:
    scores, suspect, flagged = found.detected
    return verdict_of(scores, threshold=config.threshold, suspect=int(suspect), flagged=bool(flagged))


def fuse_settings(
    setup: Setup,
    victim: Variables,
    scores: Scores,
    ask: Callable[[Variables], Any],
    *,
    counts: jax.Array,
    lams: jax.Array,
    config: OTBRConfig,
    key: jax.Array,
    on_setting: Report | None = None,
) -> Any:
    """What `ask` says of the network fused at every pair of a gamma and a lambda; gammas first. One held at a time.

    Args:
      setup: the network, and the layers to prune and fuse.
      victim: the suspicious network's variables.
      scores: neuron weight changes.
      ask: of a fused network's variables.
      counts: int `[gammas]`, how many neurons each gamma prunes.
      lams: float32 `[lambdas]`.
      config: the method's settings, but for gamma and lambda.
      key: typed PRNG key, which only random masses need.
      on_setting: called on the host after each gamma; None traces no callback.
    """

    def one_gamma(count: jax.Array) -> Any:
        pruned, info = prune(victim, scores, setup.layers, count=count)
        aligned = align(pruned, victim, scores, info.pruned, setup.layers, config=config.fusion, key=key)
        asked = jax.lax.map(lambda lam: ask(interpolate(victim, aligned, lam=lam)), lams)
        if on_setting is not None:
            jax.debug.callback(on_setting)
        return asked

    return jax.tree.map(lambda found: found.reshape(-1, *found.shape[2:]), jax.lax.map(one_gamma, counts))


def is_flagged(values: Mapping[str, Any]) -> bool:
    """Whether a run may change the network: where it looked for a backdoor, some class is flagged."""
    return "detected" not in values or bool(values["detected"].detected.flagged)


def measured(config: SuspicionConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """The triggers of each class, by family, and how the settings did, as plain JSON values."""
    found, triggers = values["detected"], values["inverted"]
    return {
        "trigger_size": {name: _numbers(each.size) for name, each in triggers.items()},
        "trigger_success": {name: _numbers(each.success) for name, each in triggers.items()},
        "settings": [
            {
                "gamma": gamma,
                "lambda": lam,
                "agreement": rounded(np.mean(found.answers.agreement[index])),
                "remaining": rounded(found.remaining[index]),
            }
            for index, (gamma, lam) in enumerate(itertools.product(config.gamma, config.lam))
        ],
    }


def patches(values: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The patch of each class: masks `[classes, h, w, 1]` and patterns `[classes, h, w, c]` in [0, 1]."""
    found = values["inverted"]["patch"].parameters
    return np.asarray(found.mask), np.asarray(found.pattern)


def _numbers(values: Sequence[Any] | jax.Array) -> list[float]:
    return [rounded(value) for value in values]
