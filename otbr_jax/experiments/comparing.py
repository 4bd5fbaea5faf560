"""One comparison with a reference: how far apart two arrays are, and whether that is near enough."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Comparison(NamedTuple):
    """Attributes:
    name: what was compared.
    max_abs: largest absolute difference.
    max_rel: the error that `tolerance` is about, relative to what `note` or the function that made it says.
    tolerance: largest `max_rel` that passes.
    passed: whether it does; never where a difference is NaN.
    note: what a reader has to know; often empty.
    """

    name: str
    max_abs: float
    max_rel: float
    tolerance: float
    passed: bool
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        line = {
            "name": self.name,
            "max_abs": float(f"{self.max_abs:.3g}"),
            "max_rel": float(f"{self.max_rel:.3g}"),
            "tolerance": self.tolerance,
            "pass": self.passed,
        }
        return line | ({"note": self.note} if self.note else {})


def compare(
    name: str, found: np.ndarray, expected: np.ndarray, *, tolerance: float, scale: float | None = None, note: str = ""
) -> Comparison:
    """Compares arrays of one shape: the largest difference, relative to `scale`, by default to the largest value."""
    difference = _largest(np.asarray(found, np.float64) - np.asarray(expected, np.float64))
    scale = _largest(np.asarray(expected)) if scale is None else scale
    return judge(name, difference, difference / scale if scale else difference, tolerance=tolerance, note=note)


def compare_each(name: str, found: np.ndarray, expected: np.ndarray, *, tolerance: float, note: str = "") -> Comparison:
    """Compares arrays of one shape, each value relative to itself, at least to a thousandth of the largest."""
    difference = np.abs(np.asarray(found, np.float64) - np.asarray(expected, np.float64))
    floor = np.maximum(np.abs(expected), 1e-3 * _largest(expected) or 1.0)
    return judge(name, _largest(difference), _largest(difference / floor), tolerance=tolerance, note=note)


def judge(name: str, max_abs: float, max_rel: float, *, tolerance: float, note: str = "") -> Comparison:
    """A comparison of which the errors are known."""
    return Comparison(name, float(max_abs), float(max_rel), tolerance, bool(max_rel <= tolerance), note)


def _largest(array: np.ndarray) -> float:
    return float(np.max(np.abs(array), initial=0.0))
