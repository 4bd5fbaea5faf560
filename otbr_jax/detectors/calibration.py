"""Calibration: the anomaly scores of clean networks by each detector, and the evidence that such networks have.

The measurements are in `calibration.json`, beside this module, which `python -m launch.calibrate` writes from rows of
benches. A step has what it needs of them among its settings, so that another file makes another result.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any, NamedTuple

from otbr_jax.detectors.verdict import Backdoored, Verdict, p_value

FILE = "calibration.json"

CleanEvidence = Mapping[str, tuple[float, float]]
"""Of the largest evidence of any class in clean networks, by kind: the median and the standard deviation."""


class Calibration(NamedTuple):
    """Clean networks as one detector sees them, at its default settings.

    Attributes:
      scores: the anomaly score of each network, ascending; empty where none was measured.
      evidence: the evidence of clean networks; empty for a detector that does not need it.
    """

    scores: tuple[float, ...] = ()
    evidence: Mapping[str, tuple[float, float]] = {}


@functools.cache
def read_calibration() -> Mapping[str, Any]:
    """The contents of the file, by the detector's name; see `otbr_jax.report.calibration` for its form."""
    text = resources.files("otbr_jax.detectors").joinpath(FILE).read_text(encoding="utf-8")
    contents: dict[str, Any] = json.loads(text)
    return contents


def calibration_of(detector: str) -> Calibration:
    """The calibration of the detector of that name; empty where it has none."""
    entry = read_calibration().get(detector, {})
    scores = sorted(network["score"] for network in entry.get("networks", ()))
    evidence = {kind: (median, deviation) for kind, (median, deviation) in entry.get("evidence", {}).items()}
    return Calibration(tuple(scores), evidence)


def calibrated(verdict: Verdict, clean: Calibration) -> Verdict:
    """The verdict with the p-value that clean networks give it; unchanged if there are none, or if it cannot tell."""
    if verdict.backdoored == Backdoored.CANNOT_TELL or verdict.score is None or not clean.scores:
        return verdict
    return verdict._replace(p_value=p_value(verdict.score, clean.scores), clean_networks=len(clean.scores), why_not="")
