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
