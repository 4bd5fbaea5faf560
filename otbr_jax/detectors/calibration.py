"""Clean networks: how they score by each detector, and what evidence is usual in them.

What was measured stands in `calibration.json`, beside this module, which `python -m launch.calibrate` writes from rows
of benches. A step is given what it needs of it among its settings, so that another file is another result.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any, NamedTuple

from otbr_jax.detectors.verdict import Backdoored, Verdict, p_value

FILE = "calibration.json"

Usual = Mapping[str, tuple[float, float]]
"""The largest evidence of a class in clean networks, by kind: the median, and what counts as a standard deviation."""


class Calibration(NamedTuple):
    """What was measured of clean networks with one detector at its usual settings.

    Attributes:
      scores: of each network, ascending; empty where none was measured.
      usual: its usual evidence; empty for a detector that does not need it.
    """

    scores: tuple[float, ...] = ()
    usual: Mapping[str, tuple[float, float]] = {}


@functools.cache
def read_calibration() -> Mapping[str, Any]:
    """What the file says, by the detector's name; see `otbr_jax.report.calibration` for its form."""
    text = resources.files("otbr_jax.detectors").joinpath(FILE).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def calibration_of(detector: str) -> Calibration:
    """What is known of clean networks by a detector of that name; empty where nothing is."""
    found = read_calibration().get(detector, {})
    scores = sorted(network["score"] for network in found.get("networks", ()))
    usual = {kind: (middle, deviation) for kind, (middle, deviation) in found.get("usual", {}).items()}
    return Calibration(tuple(scores), usual)


def calibrated(verdict: Verdict, clean: Calibration) -> Verdict:
    """The verdict with the p-value that clean networks give it; as it is where there is none to compare or to ask."""
    if verdict.backdoored == Backdoored.CANNOT_TELL or verdict.score is None or not clean.scores:
        return verdict
    return verdict._replace(p_value=p_value(verdict.score, clean.scores), clean_networks=len(clean.scores), why_not="")
