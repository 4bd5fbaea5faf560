"""Is there a backdoor, for which class, and is it gone? By how triggers fare while neurons are pruned.

The evidence (`otbr_jax.contrib.evidence`) is of several kinds. Clean networks show each of them too: by chance one
class is easier to imitate and another falls first. The anomaly score of a class is therefore a weighted sum of all
kinds. The weights are the simplest that separated the bench's victims from its clean networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.contrib.evidence import EVIDENCE, Observations, Predictions
from otbr_jax.contrib.evidence.evidence import relative
from otbr_jax.contrib.images import SyntheticConfig
from otbr_jax.detectors.verdict import FEWEST, Detected
from otbr_jax.inversion import InversionConfigs, InvertedTriggers, PenalisedConfig, success_rate
from otbr_jax.inversion.penalised import family_of
from otbr_jax.settings import field, settings, wrong
from otbr_jax.types import Batch, Network, Variables


@settings("detection")
class PruningDetectionConfig:
    """How a backdoor is detected by pruning and fusing, and how gamma and lambda are chosen without data."""

    gamma: tuple[float, ...] = field(
        default=(),
        at_least=0,
        at_most=1,
        doc="shares of neurons to try; empty for no verdict: gamma and lambda are then the method's.",
    )
    lam: tuple[float, ...] = field(default=(0.5, 0.75), at_least=0, at_most=1, doc="the paper's lambdas to try.")
    synthetic: SyntheticConfig = field(default=SyntheticConfig(), doc="how images are made from the network.")
    patch: PenalisedConfig = field(
        default=PenalisedConfig(steps=80), doc="how a patch is inverted for each class on these images."
    )
    perturbation: PenalisedConfig = field(
        default=PenalisedConfig(steps=80, learning_rate=0.03, size=30.0),
        doc="how a perturbation of the whole image is inverted.",
    )
    agreement: float = field(
        default=0.9,
        at_least=0,
        at_most=1,
        doc="the least share of images that keep their prediction; settings below it are no evidence about classes.",
    )
    least_agreement: float = field(
        default=0.6,
        at_least=0,
        at_most=1,
        doc="the least share of images of the other classes that keep their prediction; settings below it are not "
        "chosen.",
    )
    threshold: float = field(default=0.41, doc="the score from which a class is flagged.")
    remaining: float = field(
        default=0.02,
        at_least=0,
        at_most=1,
        doc="how much may remain of the suspicious class at a setting that counts as repaired, see `remaining`.",
    )
    evidence: tuple[str, ...] = field(
        default=("patch", "perturbation", "fall"), choices=tuple(EVIDENCE), doc="the kinds of evidence that count."
    )

    def check(self) -> None:
        """A grid has two sides, and there is some evidence."""
        if self.gamma and not self.lam:
            raise wrong(self, "lam", f"lambdas beside detection.gamma {[*self.gamma]}", found="none")
        if not self.evidence:
            raise wrong(self, "evidence", f"at least one of {[*EVIDENCE]}", found="none")

    @property
    def searches(self) -> InversionConfigs:
        """How triggers are inverted, by family."""
        return {"patch": self.patch, "perturbation": self.perturbation}


def count_predictions(network: Network, variables: Variables, batch: Batch, patches: InvertedTriggers) -> Predictions:
    """Which predictions a network keeps, and how well each class's patch works on it.

    Args:
      network: the functions of the network.
      variables: its variables.
      batch: images `[n, h, w, c]` in [0, 1], and the suspicious network's predictions `[n]`.
      patches: a patch for each class.
    """
    predictions = jnp.argmax(network.answer(variables, batch.images), axis=-1)
    classes = jnp.arange(network.num_classes)
    own = batch.labels[None, :] == classes[:, None]
    count = jnp.sum(own, axis=1)
    kept = jnp.sum(own & (predictions == batch.labels)[None, :], axis=1)
    agreement = jnp.where(count > 0, kept / jnp.maximum(count, 1), 1.0)

    def success(trigger: tuple[jax.Array, jax.Array]) -> jax.Array:
        patch, target = trigger
        return success_rate(network, variables, batch, family_of("patch").trigger(patch), target)

    return Predictions(agreement, jax.lax.map(success, (patches.parameters, classes)))


def anomaly_scores(observations: Observations, *, evidence: Sequence[str]) -> jax.Array:
    """The score of every class, `[classes]`: the weighted sum of the evidence of these kinds."""
    total = jnp.zeros(())
    # The last first: sums of the published three round as they always did.
    for kind in reversed([EVIDENCE[name] for name in evidence]):
        total = total + kind.weight * kind.of(observations)
    return total


def remaining(predictions: Predictions, suspect: jax.Array | int) -> jax.Array:
    """What remains of a suspicious class at every setting, `[settings]`, at least 0.

    The share of its images that keep their prediction, times how well its trigger works against the median of all
    classes. Images made for the attacker's class hold the trigger, and so are lost with the backdoor.
    """
    return predictions.agreement[:, suspect] * relative(predictions.success)[:, suspect]


class Findings(NamedTuple):
    """What networks with more and more neurons pruned and fused predict, and what follows.

    Attributes:
      predictions: of every setting, `[settings, classes]`.
      detected: the score of each class, see `anomaly_scores`; none is flagged of fewer than `FEWEST` classes.
      remaining: `[settings]`, of the suspect, see `remaining`.
      chosen: index of the setting with the highest agreement among those that leave little of the suspect; where none
        does, of the one that leaves least among those that still agree enough.
    """

    predictions: Predictions
    detected: Detected
    remaining: jax.Array
    chosen: jax.Array


def detect_by_pruning(
    triggers: Mapping[str, InvertedTriggers], predictions: Predictions, *, config: PruningDetectionConfig
) -> Findings:
    """Scores the classes, and chooses the setting that leaves little of the suspect. Pure; jits.

    Args:
      triggers: the suspicious network's, `{family: InvertedTriggers}`, one for each class.
      predictions: of networks with more and more neurons pruned and fused, `[settings, classes]`, in order of strength.
      config: what counts as evidence and as repaired.
    """
    scores = anomaly_scores(Observations(triggers, predictions, config.agreement), evidence=config.evidence)
    suspect = jnp.argmax(scores)
    left = remaining(predictions, suspect)
    gone = left <= config.remaining
    agreement = jnp.mean(predictions.agreement, axis=1)
    others = jnp.mean(predictions.agreement, axis=1, where=jnp.arange(len(scores)) != suspect)
    sound = (others >= config.least_agreement) | (others == jnp.max(others))
    least = jnp.argmin(jnp.where(sound, left, jnp.inf))
    chosen = jnp.where(jnp.any(gone & sound), jnp.argmax(jnp.where(gone & sound, agreement, -1.0)), least)
    flagged = (scores[suspect] >= config.threshold) & (len(scores) >= FEWEST)
    return Findings(predictions, Detected(scores, suspect, flagged), left, chosen)
