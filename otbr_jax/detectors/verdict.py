"""Verdicts: whether a network is backdoored, and for which class; what every detector returns."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from otbr_jax.metrics import rounded

FEWEST = 3
"""Classes that a comparison with the median class needs: of two classes neither can be an outlier."""


class Backdoored(enum.StrEnum):
    """The three values of `Verdict.backdoored`. They equal plain strings, as in JSON and in rows of results.

    They have no truth value, since `if not verdict.backdoored` would treat *cannot tell* as *no*. Compare instead:

        if verdict.backdoored == "yes": ...
        elif verdict.backdoored == "cannot tell": print(verdict.why_not)
    """

    YES = "yes"
    NO = "no"
    CANNOT_TELL = "cannot tell"

    def __bool__(self) -> bool:
        """Raises TypeError."""
        raise TypeError("backdoored: expected a comparison, such as `backdoored == 'yes'`, found a truth value")


class Detected(NamedTuple):
    """Scores of classes as arrays, the value of a step; `verdict_of` makes a verdict of them.

    Attributes:
      scores: float32 `[classes]`, higher for a class that is more likely the target class.
      suspect: int32, the class with the highest score.
      flagged: bool, whether its score reaches the threshold.
    """

    scores: jax.Array
    suspect: jax.Array
    flagged: jax.Array


class Verdict(NamedTuple):
    """A detector's verdict on a network, as plain values.

    Attributes:
      detector: its name.
      backdoored: `"yes"`: a class is flagged; `"no"`: none is; or `"cannot tell"`, see `why_not`.
      suspect: the class with the highest score, flagged or not.
      score: of the suspect; None where it is NaN.
      scores: of each class; None where it is NaN.
      threshold: the score from which a class is flagged, as published or as calibrated.
      p_value: the probability that a clean network scores as high, in [0, 1]; None where it is not known.
      clean_networks: how many clean networks the p-value compares with; 0 where the detector has a null distribution of
        its own, or there is no p-value.
      evidence: what scores are computed from, `{kind: one number for each class}`; None for a class without.
      triggers: an inverted trigger of each class, to be drawn: masks `[classes, h, w, 1]` and patterns
        `[classes, h, w, c]`, all in [0, 1]; None without. JSON leaves them out.
      why_not: why the detector cannot tell, or why there is no p-value, and what would help; empty where there is a
        verdict with a p-value.
    """

    detector: str
    backdoored: Backdoored
    suspect: int
    score: float | None
    scores: tuple[float | None, ...]
    threshold: float
    p_value: float | None = None
    clean_networks: int = 0
    evidence: Mapping[str, tuple[float | None, ...]] = {}
    triggers: Any = None
    why_not: str = ""

    def plain(self) -> dict[str, Any]:
        """As plain JSON values, without `triggers`; `read_verdict` is the way back."""
        values = self._asdict() | {
            "backdoored": self.backdoored.value,
            "scores": [*self.scores],
            "evidence": {kind: [*values] for kind, values in self.evidence.items()},
        }
        del values["triggers"]
        return values


def read_verdict(values: Mapping[str, Any]) -> Verdict:
    """The verdict from the values of `Verdict.plain`; fields with a default may be missing."""
    evidence = {kind: tuple(each) for kind, each in values.get("evidence", {}).items()}
    known = {name: values[name] for name in Verdict._fields if name in values}
    plain = {"backdoored": Backdoored(values["backdoored"]), "scores": tuple(values["scores"]), "evidence": evidence}
    return Verdict(**known | plain)


def verdict_of(
    scores: Sequence[float] | np.ndarray | jax.Array,
    *,
    threshold: float,
    suspect: int | None = None,
    flagged: bool | None = None,
    p_value: float | None = None,
    evidence: Mapping[str, tuple[float | None, ...]] | None = None,
) -> Verdict:
    """Makes a verdict of scores: the class with the highest one is flagged if that reaches the threshold.

    Args:
      scores: `[classes]`, higher for a class that is more likely the target class. If one is NaN, the verdict is
        *cannot tell*.
      threshold: the score from which a class is flagged.
      suspect: the class with the highest score, where several have it.
      flagged: whether a step of the plan flagged it; by default the rounded score, as it is printed, decides.
      p_value: of the detector's own null distribution, in [0, 1]; None without one.
      evidence: see `Verdict`.

    Returns:
      The verdict, without the detector's name, which `conclude` knows.
    """
    values = np.asarray(scores, np.float64)
    known = tuple(None if math.isnan(value) else rounded(value) for value in values)
    if suspect is None:
        suspect = int(np.argmax(np.where(np.isnan(values), -np.inf, values)))
    verdict = Verdict("", Backdoored.NO, suspect, known[suspect], known, float(threshold), evidence=evidence or {})
    if None in known:
        where = [label for label, value in enumerate(known) if value is None]
        why = f"the scores of classes {where} are NaN; logits may overflow: try float32"
        return verdict._replace(backdoored=Backdoored.CANNOT_TELL, why_not=why)
    if p_value is not None:
        verdict = verdict._replace(p_value=_four_digits(p_value))
    exact, limit = float(values[suspect]), float(np.float32(threshold))
    if flagged is not None and flagged != (rounded(exact) >= threshold) and flagged == (exact >= limit):
        # A step compares more digits than are printed otherwise: keep them all.
        printed = tuple(exact if label == suspect else value for label, value in enumerate(known))
        verdict = verdict._replace(score=exact, scores=printed, threshold=limit)
    if flagged is None:
        flagged = rounded(exact) >= threshold
    return verdict._replace(backdoored=Backdoored.YES if flagged else Backdoored.NO)


def with_enough_classes(verdict: Verdict, fewest: int) -> Verdict:
    """The verdict; or *cannot tell* if the network has fewer classes than the detector needs."""
    classes = len(verdict.scores)
    if classes >= fewest:
        return verdict
    why = (
        f"the network has {classes} classes, and the detector needs at least {fewest}; another one may need fewer, and "
        "a defence with clean images needs no verdict"
    )
    return verdict._replace(backdoored=Backdoored.CANNOT_TELL, p_value=None, clean_networks=0, why_not=why)


def in_words(verdict: Verdict) -> str:
    """A verdict in a clause: the class, its score, the threshold, and how often a clean network scores as high."""
    number = "NaN" if verdict.score is None else f"{verdict.score:.2f}"
    threshold = f"threshold {verdict.threshold:g}" + (f" ({verdict.detector})" if verdict.detector else "")
    highest = f"class {verdict.suspect} scores highest, {number}, {threshold}"
    if verdict.backdoored == Backdoored.CANNOT_TELL:
        return f"cannot tell whether it is backdoored: {verdict.why_not}; {highest}"
    clause = f"no class is flagged: {highest}"
    if verdict.backdoored == Backdoored.YES:
        clause = f"class {verdict.suspect} is flagged: score {number}, {threshold}"
        reaching = [label for label, score in enumerate(verdict.scores) if (score or 0) >= verdict.threshold]
        if others := [f"class {label} ({verdict.scores[label]:.2f})" for label in reaching if label != verdict.suspect]:
            clause += f"; above the threshold, too: {' and '.join(others)}"
    if verdict.p_value is not None:
        compared = compared_in_words(verdict)
        return f"{clause}; p-value {verdict.p_value:.2g}" + (f": {compared}" if compared else "")
    return f"{clause}; p-value not known: {verdict.why_not}" if verdict.why_not else clause


def compared_in_words(verdict: Verdict) -> str:
    """How many of the clean networks behind a p-value score as high; empty where there are none."""
    if not verdict.clean_networks or verdict.p_value is None:
        return ""
    higher = round(verdict.p_value * (1 + verdict.clean_networks)) - 1
    return f"{higher or 'none'} of {verdict.clean_networks} clean networks score{'s' * (higher < 2)} as high"


def p_value(score: float, clean: Sequence[float]) -> float:
    """The probability that a clean network scores as high: the conformal p-value, `(1 + as high) / (1 + all)`.

    Args:
      score: of the network.
      clean: scores of clean networks.
    """
    return _four_digits((1 + sum(other >= score for other in clean)) / (1 + len(clean)))


def _four_digits(value: float) -> float:
    return float(f"{value:.4g}")
