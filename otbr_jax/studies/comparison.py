"""One comparison with a reference: how far apart two results are, and whether rounding can explain it.

A tolerance is measured: the same program runs from a few starts that differ by rounding. A difference from the
reference that is no larger than theirs can be rounding. A floor covers what another compilation of the program changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from otbr_jax.types import Variables, named_leaves, replace_leaves

ROUNDING = 1e-7
"""Relative perturbation of a start's parameters: float32 distinguishes numbers to 6e-8."""
STARTS = 4
"""How many starts are perturbed."""
FACTOR = 4.0
"""The tolerance, as a multiple of the distance between our result and those of perturbed starts."""
MOST = 0.5
"""The largest tolerance: a comparison that rounding changes by more fails."""


class Comparison(NamedTuple):
    """Attributes:
    name: what was compared.
    max_abs: largest absolute difference.
    max_rel: the error to compare with `tolerance`, relative to what `note` says.
    tolerance: largest `max_rel` that passes.
    passed: whether it passes; False if a difference is NaN.
    note: where the tolerance comes from, and what else a reader has to know.
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


def largest(array: np.ndarray) -> float:
    """The largest absolute value, 0 of no values."""
    return float(np.max(np.abs(array), initial=0.0))


def norm(array: np.ndarray) -> float:
    """The L2 norm over all axes."""
    return float(np.sqrt(np.sum(np.square(array))))


def nearly_equal_starts(variables: Variables) -> list[Variables]:
    """The variables, and `STARTS` copies whose parameters differ by rounding; zeros stay zero."""
    return [variables, *(_perturb(variables, seed) for seed in range(STARTS))]


def _perturb(variables: Variables, seed: int) -> Variables:
    generator = np.random.default_rng(seed)
    perturbed = {
        name: array * (1 + ROUNDING * generator.standard_normal(array.shape)).astype(array.dtype)
        for name, array in named_leaves(variables).items()
        if name.startswith("params/")
    }
    return replace_leaves(variables, perturbed)


def compare(
    name: str,
    results: Sequence[np.ndarray],
    expected: np.ndarray,
    *,
    least: float,
    scale: np.ndarray | float | None = None,
    of: str = "the largest value",
    measure: Callable[[np.ndarray], float] = largest,
    note: str = "",
) -> Comparison:
    """Compares a result with a reference's; the tolerance comes from the results of perturbed starts.

    Args:
      name: of the comparison.
      results: arrays of one shape: the result of each of `nearly_equal_starts`.
      expected: the reference's.
      least: the tolerance's floor, relative to `scale`.
      scale: the divisor of differences, by default the largest value of `expected`; one for all values or one for each.
      of: `scale` in words.
      measure: reduces the differences of all values to one number.
      note: what else a reader has to know.
    """
    ours, *others = (np.asarray(result, np.float64) for result in results)
    scale = largest(expected) if scale is None else scale
    scale = np.where(np.asarray(scale) > 0, scale, 1.0)
    own = max((measure((other - ours) / scale) for other in others), default=0.0)
    tolerance, origin = tolerance_of(own, least=least)
    difference = ours - np.asarray(expected, np.float64)
    words = "; ".join(part for part in (f"relative to {of}", origin, note) if part)
    return compare_errors(name, largest(difference), measure(difference / scale), tolerance=tolerance, note=words)


def tolerance_of(own: float, *, least: float) -> tuple[float, str]:
    """The tolerance if results of perturbed starts differ from ours by `own`, and where it comes from in words."""
    change = f"{own:.2g}, the largest of {STARTS}"
    if not FACTOR * own > least:
        return least, f"tolerance: the floor; a start perturbed by {ROUNDING:g} changes it less ({change})"
    words = f"tolerance: {FACTOR:g} times the change by a start perturbed by {ROUNDING:g} ({change}), at most {MOST:g}"
    return min(MOST, float(f"{FACTOR * own:.3g}")), words


def compare_neurons(
    name: str, results: Sequence[np.ndarray], expected: np.ndarray, *, least: float, note: str = ""
) -> Comparison:
    """`compare` of one value of at least 0 for each neuron, relative to itself or to a thousandth of the largest."""
    scale = np.maximum(np.abs(expected), 1e-3 * largest(expected))
    return compare(name, results, expected, least=least, scale=scale, of="each neuron's value", note=note)


def compare_choice(
    name: str,
    chosen: np.ndarray,
    expected: np.ndarray,
    values: Sequence[np.ndarray],
    *,
    least: float,
    steps: np.ndarray | float = 0.0,
    things: str,
) -> Comparison:
    """Compares two sets that were chosen by a threshold: exactly, but for values that rounding can move across it.

    Args:
      name: of the comparison.
      chosen: bool `[n]`, ours.
      expected: bool `[n]`, the reference's.
      values: `[n]`, the values that the choice depends on, for each of `nearly_equal_starts`.
      least: a value this near to the smallest chosen one, relative to that one, may be chosen or not.
      steps: what values are rounded to, one for all or each.
      things: what is chosen, in words.
    """
    ours, *others = (np.asarray(value, np.float64) for value in values)
    differ = np.flatnonzero(chosen != expected)
    threshold = float(np.min(ours[chosen], initial=np.inf))
    own = max((largest(other[differ] - ours[differ]) for other in others), default=0.0) / threshold
    band, origin = tolerance_of(own, least=least)
    near = np.abs(ours[differ] - threshold) <= band * threshold + np.broadcast_to(steps, ours.shape)[differ]
    note = f"{things} in one set only, of {int(expected.sum())}"
    if near.any():
        note += f"; {int(near.sum())} more lie within {band:g} of the threshold, nearer than rounding tells apart"
        note += f" ({origin})"
    clear = int((~near).sum())
    return compare_errors(name, clear, clear / max(int(expected.sum()), 1), tolerance=0.0, note=note)


def worst_of(name: str, comparisons: Sequence[Comparison]) -> Comparison:
    """The comparison with the largest error relative to its tolerance, to stand for all of them."""
    # A NaN is no larger than anything; what fails comes first.
    worst = max(comparisons, key=lambda one: (not one.passed, one.max_rel / (one.tolerance or 1.0)))
    return worst._replace(name=name, note=f"worst of {len(comparisons)}: {worst.name}; {worst.note}")


def compare_errors(name: str, max_abs: float, max_rel: float, *, tolerance: float, note: str = "") -> Comparison:
    """A comparison from known errors."""
    passed = bool(np.isfinite(max_rel) and max_rel <= tolerance)
    return Comparison(name, float(max_abs), float(max_rel), tolerance, passed, note)
