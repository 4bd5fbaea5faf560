"""Numbers as every table and page prints them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOTHING = "-"  # of what was not measured


def percent(value: float | None) -> str:
    """0.958 -> `95.8`; None -> a hyphen."""
    return formatted(value if value is None else 100 * value, ".1f")


def formatted(value: float | None, form: str) -> str:
    """A number in that form, such as `.3f`; None -> a hyphen."""
    return NOTHING if value is None else format(value, form)


def rates(measured: Mapping[str, Any]) -> str:
    """ACC and ASR in per cent, `95.8 / 1.2`, of fractions `acc` and `asr`."""
    return f"{percent(measured['acc'])} / {percent(measured['asr'])}"


def share(count: int, of: int) -> str:
    """`7 of 10 (40 to 89 %)`: a count, and the 95 % confidence interval of its share, after Wilson."""
    if not of:
        return "0 of 0"
    from scipy.stats import binomtest  # slow to import, and seldom wanted

    interval = binomtest(count, of).proportion_ci(0.95, method="wilson")
    return f"{count} of {of} ({100 * interval.low:.0f} to {100 * interval.high:.0f} %)"


def auc_interval(auc: float, positives: int, negatives: int) -> tuple[float, float]:
    """The 95 % confidence interval of an AUC, which is not of width 0 where all networks are told.

    All areas `a` with `|auc - a| <= 1.96 sqrt(V(a))`, where V is Hanley and McNeil's variance with both numbers of
    networks at their mean. Source: Newcombe, Statistics in Medicine 25 (2006), his method 5.

    Args:
      auc: in [0, 1].
      positives: how many networks are backdoored, at least 1.
      negatives: how many are clean, at least 1.
    """
    more = (positives + negatives) / 2 - 1

    def within(area: float) -> bool:
        shape = 1 + more * ((1 - area) / (2 - area) + area / (1 + area))
        variance = area * (1 - area) * shape / (positives * negatives)
        return (auc - area) ** 2 <= 1.959964**2 * variance

    def end(outside: float) -> float:
        inside = auc
        for _ in range(60):
            middle = (outside + inside) / 2
            outside, inside = (outside, middle) if within(middle) else (middle, inside)
        return inside

    return end(0.0), end(1.0)
