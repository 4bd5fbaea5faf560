"""What a detector is: a plan that changes nothing, and the verdict on what its steps found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from otbr_jax.detectors.calibration import calibrated, calibration_of
from otbr_jax.detectors.verdict import Backdoored, Verdict, with_enough_classes
from otbr_jax.plan import Plan

DATA = ("none", "clean images")
"""What a detector may need beside the network."""


@dataclasses.dataclass(frozen=True)
class Detector:
    """A method that tells backdoored networks. A file of this package with a `DETECTOR` in it is all that one takes.

    Attributes:
      name: as `detect` and `--detector` name it.
      Config: its settings, a class of settings with a default for each.
      data: what it needs beside the network, one of `DATA`.
      plan: `config -> Plan`. Its steps may need `victim`, the suspicious network's variables, and where `data` says so
        `clean`, a batch of clean uint8 images.
      verdict: `(config, {step: value}) -> Verdict`, by `verdict_of`; on the host. `conclude` adds what all have.
      fewest_classes: how many classes it has to compare; of fewer it cannot tell.
      is_usual: `config -> whether` its settings are those that clean networks were scored with.
      triggers: `(config, {step: value}) -> (masks [classes, h, w, 1], patterns [classes, h, w, c])`, to be drawn; None
        where it finds none.
    """

    name: str
    Config: type
    data: str
    plan: Callable[[Any], Plan]
    verdict: Callable[[Any, Mapping[str, Any]], Verdict]
    fewest_classes: int = 2
    triggers: Callable[[Any, Mapping[str, Any]], tuple[Any, Any]] | None = None
    is_usual: Callable[[Any], bool] = lambda config: True


def conclude(detector: Detector, config: Any, values: Mapping[str, Any], *, draw: bool = True) -> Verdict:
    """The verdict on what a detector's steps found: with a p-value where one is known, and triggers to be drawn.

    Args:
      detector: the detector.
      config: its settings.
      values: of its plan's steps, by name.
      draw: whether `triggers` are wanted, which may cost a compilation.
    """
    found = with_enough_classes(detector.verdict(config, values), detector.fewest_classes)
    found = found._replace(detector=detector.name)
    if draw and detector.triggers is not None:
        found = found._replace(triggers=detector.triggers(config, values))
    if found.p_value is not None or found.backdoored == Backdoored.CANNOT_TELL:
        return found
    clean = calibration_of(detector.name)
    if not clean.scores:
        return found._replace(why_not=f"no clean networks were scored by {detector.name}")
    if not detector.is_usual(config):
        why = "clean networks were scored with other settings of the search; its defaults have a p-value"
        return found._replace(why_not=why)
    return calibrated(found, clean)
