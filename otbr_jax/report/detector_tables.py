"""The table of detectors on the same networks, and their ROC curves."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from otbr_jax.detectors.scores import roc
from otbr_jax.report.cells import ATTACKS
from otbr_jax.report.numbers import NOTHING, auc_interval, formatted, share
from otbr_jax.report.rows import Row, field, grouped, integer, is_flagged, latest, text
from otbr_jax.report.table import Table

LEARNED = 0.1
"""The ASR from which a victim has the backdoor that it was trained for; others count neither way."""


def detectors(rows: Sequence[Row]) -> list[Table]:
    """A line for each detector: how well its score and its threshold separate backdoored networks from clean ones."""
    rows = latest(rows, "cell")
    lines = [_line(way, own) for (way, *_), own in grouped(rows, "detector", "variant").items()]
    columns = (
        "detector",
        "needs",
        "backdoored + clean",
        "AUC",
        "detected at its threshold",
        "with the right class",
        "false positives",
        "seconds, median",
    )
    unlearned = {_victim(row) for row in rows if not _counts(row)}
    notes = ["In brackets: ninety-five per cent intervals; of shares after Wilson, of the AUC after Newcombe."]
    if unlearned:
        notes.append(f"{len(unlearned)} victims did not learn the attack, below ten per cent ASR, and do not count.")
    return [Table(columns, lines, notes=notes)]


def curves(rows: Sequence[Row]) -> dict[str, Mapping[str, Any]]:
    """ROC curve of each detector that has scored networks of both kinds, as `plots.roc_curves` takes them."""
    curves_by_way: dict[str, Mapping[str, Any]] = {}
    for (name, variant), own in grouped(latest(rows, "cell"), "detector", "variant").items():
        counted = [row for row in own if _counts(row)]
        if len({_attacked(row) for row in counted}) == 2:
            curve = _roc(counted)
            curves_by_way[_way(name, variant)] = {
                "false_positive_rate": [float(rate) for rate in curve.false_positive_rate],
                "true_positive_rate": [float(rate) for rate in curve.true_positive_rate],
                "auc": float(curve.auc),
            }
    return curves_by_way


def _line(name: str, own: Sequence[Row]) -> list[str]:
    counted = [row for row in own if _counts(row)]
    backdoored = [row for row in counted if _attacked(row)]
    clean = [row for row in counted if not _attacked(row)]
    auc = NOTHING
    if backdoored and clean:
        value = float(_roc(counted).auc)
        low, high = auc_interval(value, len(backdoored), len(clean))
        auc = f"{value:.3f} ({100 * low:.0f} to {100 * high:.0f} %)"
    detected = [row for row in backdoored if is_flagged(row)]
    right = sum(field(row, "verdict.suspect") == integer(row, "target") for row in detected)
    seconds = [float(field(row, "detector_seconds")) for row in own]
    return [
        _way(name, text(own[0], "variant")),
        text(own[0], "needs"),
        f"{len(backdoored)} + {len(clean)}",
        auc,
        share(len(detected), len(backdoored)),
        share(right, len(backdoored)),
        share(sum(is_flagged(row) for row in clean), len(clean)),
        formatted(statistics.median(seconds), ".0f"),
    ]


def _way(name: str, variant: str) -> str:
    return f"{name}, {variant}" if variant.strip(NOTHING) else name


def _roc(rows: Sequence[Row]) -> Any:
    scores = jnp.array([float(field(row, "verdict.score")) for row in rows])
    return roc(scores, jnp.array([_attacked(row) for row in rows]))


def _attacked(row: Row) -> bool:
    return text(row, "attack", among=ATTACKS) != "none"


def _counts(row: Row) -> bool:
    """Whether a network is what it was trained to be."""
    return not _attacked(row) or float(field(row, "metrics.victim.asr")) >= LEARNED


def _victim(row: Row) -> tuple[str, ...]:
    return (*(text(row, name) for name in ("dataset", "network", "attack", "recipe")), str(integer(row, "seed")))
