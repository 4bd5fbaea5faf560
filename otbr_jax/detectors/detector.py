"""What a detector is: a plan that leaves the network unchanged, and the verdict on the values of its steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from otbr_jax.detectors.calibration import calibrated, calibration_of
from otbr_jax.detectors.verdict import Backdoored, Verdict, with_enough_classes
from otbr_jax.plan import Plan

DATA = ("none", "clean images")
"""What a detector may need besides the network."""


@dataclasses.dataclass(frozen=True)
class Detector:
    """A method that detects backdoored networks. A file of this package with a `DETECTOR` in it is all that one takes.

    Attributes:
      name: as `detect` and `--detector` name it.
      Config: its settings, a class of settings with a default for each.
      data: what it needs besides the network, one of `DATA`.
      plan: `config -> Plan`. Its steps may need `victim`, the suspicious network's variables, and where `data` says so
        `clean`, a batch of clean uint8 images.
      verdict: `(config, {step: value}) -> Verdict`, by `verdict_of`; on the host. `conclude` adds name, p-value and
        triggers.
      fewest_classes: how many classes it has to compare; with fewer its verdict is *cannot tell*.
      triggers: `(config, {step: value}) -> (masks [classes, h, w, 1], patterns [classes, h, w, c])`, all in [0, 1], to
        be drawn; None for a detector that inverts none.
      is_calibrated: `config -> bool`, whether clean networks were scored with these settings.
    """

    name: str
    Config: type
    data: str
    plan: Callable[[Any], Plan]
    verdict: Callable[[Any, Mapping[str, Any]], Verdict]
    fewest_classes: int = 2
    triggers: Callable[[Any, Mapping[str, Any]], tuple[Any, Any]] | None = None
    is_calibrated: Callable[[Any], bool] = lambda config: True


def conclude(detector: Detector, config: Any, values: Mapping[str, Any], *, draw: bool = True) -> Verdict:
    """The verdict on the values of a detector's steps: with a p-value where one is known, and triggers to be drawn.

    Args:
      detector: the detector.
      config: its settings.
      values: the values of its plan's steps, by name.
      draw: whether to add `triggers`, which may take a compilation.
    """
    verdict = with_enough_classes(detector.verdict(config, values), detector.fewest_classes)
    verdict = verdict._replace(detector=detector.name)
    if draw and detector.triggers is not None:
        verdict = verdict._replace(triggers=detector.triggers(config, values))
    if verdict.p_value is not None or verdict.backdoored == Backdoored.CANNOT_TELL:
        return verdict
    clean = calibration_of(detector.name)
    if not clean.scores:
        return verdict._replace(why_not=f"no clean networks were scored by {detector.name}")
    if not detector.is_calibrated(config):
        why = "clean networks were scored with other settings of the search; its defaults have a p-value"
        return verdict._replace(why_not=why)
    return calibrated(verdict, clean)
