"""The steps that several defences share: is a network backdoored, for which class, and which setting leaves little?"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.defenses.otbr import OTBRConfig
from otbr_jax.detectors.detector import Verdict, in_a_line
from otbr_jax.detectors.evidence import Answers
from otbr_jax.detectors.judge import Judgement, SuspicionConfig, answers, judge
from otbr_jax.metrics import settled
from otbr_jax.plan import Report, Setup, Shown, Step, needs
from otbr_jax.steps.fuse import align, interpolate
from otbr_jax.steps.images import Pictures
from otbr_jax.steps.prune import neurons_to_prune, prune
from otbr_jax.steps.score import Scores
from otbr_jax.steps.search import Found, Searches, search_classes
from otbr_jax.types import Variables


class Judged(NamedTuple):
    """How networks with more and more neurons pruned and fused answer, and what follows."""

    answers: Answers
    judgement: Judgement


def search_triggers(
    setup: Setup, settings: Searches, *, victim: Variables, pictures: Pictures, key: jax.Array, report: Report | None
) -> dict[str, Found]:
    """A trigger of every family for every class."""
    return search_classes(setup.network, victim, pictures.batch, key=key, searches=settings, on_class=report)


class Judging(NamedTuple):
    """What `judge_network` is given: how networks are pruned and fused, and judged."""

    otbr: OTBRConfig
    suspicion: SuspicionConfig


def judge_network(
    setup: Setup,
    settings: Judging,
    *,
    victim: Variables,
    scores: Scores,
    pictures: Pictures,
    inverted: Mapping[str, Found],
    key: jax.Array,
    report: Report | None,
) -> Judged:
    """Which class stands out, and which setting leaves little of it."""
    counts, lams = sizes(setup, settings.suspicion)
    along = fuse_settings(
        setup,
        victim,
        scores,
        lambda fused: answers(setup.network, fused, pictures.batch, inverted["patch"]),
        counts=counts,
        lams=lams,
        config=settings.otbr,
        key=key,
        on_setting=report,
    )
    return Judged(along, judge(inverted, along, config=settings.suspicion))


def sizes(setup: Setup, config: SuspicionConfig) -> tuple[jax.Array, jax.Array]:
    """The numbers of neurons `[gammas]` and the lambdas `[lambdas]` that are tried."""
    counts = [neurons_to_prune(gamma, setup.neurons) for gamma in config.gamma]
    return jnp.array(counts, jnp.int32), jnp.array(config.lam, jnp.float32)


def judging_steps(config: SuspicionConfig, otbr: OTBRConfig, *, pictures: str) -> tuple[Step, Step]:
    """The steps `inverted` and `judged`; `pictures` is the step whose images the network is judged by."""
    return (
        Step(
            "inverted",
            search_triggers,
            needs("victim", pictures=pictures),
            config.searches,
            shown=Shown("reverse-engineering triggers", total=lambda setup: setup.network.num_classes, unit="class"),
        ),
        Step(
            "judged",
            judge_network,
            needs("victim", "scores", "inverted", pictures=pictures),
            Judging(otbr, config),
            key="fused",
            shown=Shown(
                "judging gamma x lambda",
                total=len(config.gamma),
                unit="gamma",
                tell=lambda settings, found: in_a_line(concluded(settings.suspicion, found.judgement)),
            ),
        ),
    )


def concluded(config: SuspicionConfig, found: Judgement) -> Verdict:
    """What follows from a judgement."""
    scores = tuple(_numbers(found.suspicion))
    suspect = int(found.suspect)
    return Verdict(scores[suspect], suspect, bool(found.stands_out), config.threshold, None, scores)


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


def stands_out(values: Mapping[str, Any]) -> bool:
    """Whether a run may change the network: where it was judged, some class stands out."""
    return "judged" not in values or bool(values["judged"].judgement.stands_out)


def summarize_judgement(config: SuspicionConfig, values: Mapping[str, Any], *, by: str) -> dict[str, Any]:
    """How suspicious each class is and how the settings did, as plain JSON values; `by` names the images."""
    (along, judgement), triggers = values["judged"], values["inverted"]
    return {
        "by": by,
        "stands_out": bool(judgement.stands_out),
        "suspect": int(judgement.suspect),
        "suspicion": _numbers(judgement.suspicion),
        "threshold": config.threshold,
        "trigger_size": _numbers(triggers["patch"].size),
        "trigger_success": _numbers(triggers["patch"].success),
        "perturbation_strength": _numbers(triggers["perturbation"].size),
        "settings": [
            {
                "gamma": gamma,
                "lambda": lam,
                "agreement": settled(np.mean(along.agreement[index])),
                "remaining": settled(judgement.remaining[index]),
            }
            for index, (gamma, lam) in enumerate(itertools.product(config.gamma, config.lam))
        ],
    }


def patches(values: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The patch of each class: masks `[classes, h, w, 1]` and patterns `[classes, h, w, c]` in [0, 1]."""
    found = values["inverted"]["patch"].parameters
    return np.asarray(found.mask), np.asarray(found.pattern)


def _numbers(values: Sequence[Any] | jax.Array) -> list[float]:
    return [settled(value) for value in values]
