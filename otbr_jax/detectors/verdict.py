"""Is a network backdoored, and for which class: the one answer that detectors give, and everything else reads."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from otbr_jax.metrics import rounded

FEWEST = 3
"""Classes that a comparison with the median class needs: half of two are no majority."""


class Backdoored(enum.StrEnum):
    """The three values of `Verdict.backdoored`. They equal plain strings, which JSON and rows of results hold.

    There is no truth value, since `if not verdict.backdoored` would take *cannot tell* for *no*. Compare instead:

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
    """What a step finds, as arrays; `verdict_of` makes a verdict of them.

    Attributes:
      scores: float32 `[classes]`, higher for a class that is more likely the attacker's.
      suspect: int32, the class with the highest score.
      flagged: bool, whether its score reaches the threshold.
    """

    scores: jax.Array
    suspect: jax.Array
    flagged: jax.Array


class Verdict(NamedTuple):
    """What a detector says of a network, as plain values.

    Attributes:
      detector: its name.
      backdoored: `"yes"`: a class is flagged; `"no"`: none is; or `"cannot tell"`, see `why_not`.
      suspect: the class with the highest score, whether it is flagged or not.
      score: of the suspect; None where it is no number.
      scores: of each class; None where it is no number.
      threshold: the score from which a class is flagged, as published or as calibrated.
      p_value: the chance that a clean network scores as high, in [0, 1]; None where it is not known.
      clean_networks: how many clean networks the p-value compares with; 0 where the detector has a null distribution of
        its own, or there is no p-value.
      evidence: what scores are made of, `{kind: one number for each class}`; None for a class without.
      triggers: what was found for each class, to be drawn: masks `[classes, h, w, 1]` and patterns
        `[classes, h, w, c]`, all in [0, 1]; None without. JSON leaves them out.
      why_not: why it is not known whether there is a backdoor, or else why the p-value is not, and what would help;
        empty where both are known.
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
        found = self._asdict() | {
            "backdoored": self.backdoored.value,
            "scores": [*self.scores],
            "evidence": {kind: [*values] for kind, values in self.evidence.items()},
        }
        del found["triggers"]
        return found


def read_verdict(values: Mapping[str, Any]) -> Verdict:
    """The verdict of what `Verdict.plain` says; what has a default may be missing."""
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
    """The verdict that follows from scores: the class with the highest one is flagged if that reaches the threshold.

    Args:
      scores: `[classes]`, higher for a class that is more likely the attacker's. One that is no number is in the way
        of any verdict.
      threshold: the score from which a class is flagged.
      suspect: the class with the highest score, where several have it.
      flagged: whether a step of the plan flagged it; by default said here, of scores as they are printed.
      p_value: of the detector's own null distribution, in [0, 1]; None without one.
      evidence: see `Verdict`.

    Returns:
      The verdict, without the detector's name, which `conclude` knows.
    """
    values = np.asarray(scores, np.float64)
    known = tuple(None if math.isnan(value) else rounded(value) for value in values)
    if suspect is None:
        suspect = int(np.argmax(np.where(np.isnan(values), -np.inf, values)))
    found = Verdict("", Backdoored.NO, suspect, known[suspect], known, float(threshold), evidence=evidence or {})
    if None in known:
        where = [label for label, value in enumerate(known) if value is None]
        why = f"the scores of classes {where} are no numbers; its logits may overflow: try it in float32"
        return found._replace(backdoored=Backdoored.CANNOT_TELL, why_not=why)
    if p_value is not None:
        found = found._replace(p_value=_four_digits(p_value))
    exact, limit = float(values[suspect]), float(np.float32(threshold))
    if flagged is not None and flagged != (rounded(exact) >= threshold) and flagged == (exact >= limit):
        # A step compares more digits than are printed elsewhere: print as many.
        printed = tuple(exact if label == suspect else value for label, value in enumerate(known))
        found = found._replace(score=exact, scores=printed, threshold=limit)
    if flagged is None:
        flagged = rounded(exact) >= threshold
    return found._replace(backdoored=Backdoored.YES if flagged else Backdoored.NO)


def with_enough_classes(verdict: Verdict, fewest: int) -> Verdict:
    """The verdict; or *cannot tell* where the network has fewer classes than the detector has to compare."""
    classes = len(verdict.scores)
    if classes >= fewest:
        return verdict
    why = (
        f"the network has {classes} classes, and the detector needs at least {fewest}; another one may need fewer, and "
        "a defence with clean images needs no verdict"
    )
    return verdict._replace(backdoored=Backdoored.CANNOT_TELL, p_value=None, clean_networks=0, why_not=why)


def in_words(verdict: Verdict) -> str:
    """A verdict in a clause: what is flagged, by which score, how often a clean network scores as high."""
    number = "no number" if verdict.score is None else f"{verdict.score:.2f}"
    threshold = f"threshold {verdict.threshold:g}" + (f" ({verdict.detector})" if verdict.detector else "")
    highest = f"class {verdict.suspect} scores highest, {number}, {threshold}"
    if verdict.backdoored == Backdoored.CANNOT_TELL:
        return f"cannot tell whether it is backdoored: {verdict.why_not}; {highest}"
    said = f"no class is flagged: {highest}"
    if verdict.backdoored == Backdoored.YES:
        said = f"class {verdict.suspect} is flagged: score {number}, {threshold}"
        reaching = [label for label, score in enumerate(verdict.scores) if (score or 0) >= verdict.threshold]
        if others := [f"class {label} ({verdict.scores[label]:.2f})" for label in reaching if label != verdict.suspect]:
            said += f"; above the threshold, too: {' and '.join(others)}"
    if verdict.p_value is not None:
        compared = compared_in_words(verdict)
        return f"{said}; p-value {verdict.p_value:.2g}" + (f": {compared}" if compared else "")
    return f"{said}; p-value not known: {verdict.why_not}" if verdict.why_not else said


def compared_in_words(verdict: Verdict) -> str:
    """How many of the clean networks that a p-value compares with score as high; empty where it compares with none."""
    if not verdict.clean_networks or verdict.p_value is None:
        return ""
    higher = round(verdict.p_value * (1 + verdict.clean_networks)) - 1
    return f"{higher or 'none'} of {verdict.clean_networks} clean networks score{'s' * (higher < 2)} as high"


def p_value(score: float, clean: Sequence[float]) -> float:
    """The chance that a clean network scores as high, `(1 + as high) / (1 + all)`, as a conformal prediction has it.

    Args:
      score: of a network.
      clean: of clean networks.
    """
    return _four_digits((1 + sum(other >= score for other in clean)) / (1 + len(clean)))


def _four_digits(value: float) -> float:
    return float(f"{value:.4g}")
