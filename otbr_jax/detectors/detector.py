"""What a detector is: a plan that changes nothing, and a verdict: backdoored or not, and for which class."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from otbr_jax.plan import Plan


class Verdict(NamedTuple):
    """What a detector says of a network, as plain values.

    Attributes:
      score: of the network, higher for one that is more likely backdoored.
      suspect: the class that it would be for; None where no class is more suspicious than another.
      backdoored: whether the network counts as backdoored, by the threshold.
      threshold: of the score, as published or as calibrated.
      p_value: the chance that a clean network scores as high; None where it is not known.
      scores: of each class.
    """

    score: float
    suspect: int | None
    backdoored: bool
    threshold: float
    p_value: float | None
    scores: tuple[float, ...]


def in_a_line(found: Verdict) -> str:
    """A verdict in a line."""
    what = "stands out" if found.backdoored else "is the most suspicious one, and does not stand out"
    return f"class {found.suspect} {what}: {found.score:.2f}, threshold {found.threshold:g}"


DATA = ("none", "clean images")
"""What a detector may need beside the network."""


@dataclasses.dataclass(frozen=True)
class Detector:
    """A method that tells backdoored networks. A file of this package with a `DETECTOR` in it is all that one takes.

    Attributes:
      name: as `detect` and `--detector` name it.
      Config: its settings, a class of settings with a default for each.
      data: what it needs beside the network, one of `DATA`.
      by: what the network is judged by, in words.
      score: what a score is, in words.
      plan: `config -> Plan`. Its steps may need `victim`, the suspicious network's variables, and where `data` says so
        `clean`, a batch of clean uint8 images.
      verdict: `(config, {step: value}) -> Verdict`; on the host.
      is_usual: `config -> whether` its settings are those that scores of clean networks were measured with.
      triggers: `(config, {step: value}) -> (masks [classes, h, w, 1], patterns [classes, h, w, c])`, to be drawn; None
        where it finds none.
    """

    name: str
    Config: type
    data: str
    by: str
    score: str
    plan: Callable[[Any], Plan]
    verdict: Callable[[Any, Mapping[str, Any]], Verdict]
    triggers: Callable[[Any, Mapping[str, Any]], tuple[Any, Any]] | None = None
    is_usual: Callable[[Any], bool] = lambda config: True
