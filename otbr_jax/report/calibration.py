"""How clean networks score: what a suspicion is compared with, measured in a bench and kept beside this module.

`python -m launch.calibrate` rebuilds the file from the bench's rows.
"""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

from otbr_jax.report.rows import Row, latest

FILE = "calibration.json"
SOURCES = {"bench_otbr_plus": 0, "bench_disarm": 10}
"""Where rows stand in results/, made by grids of these names; clean networks count from which seed on.

Those of `disarm` with lower seeds are reported, and so set no threshold.
"""


def calibration(rows: Iterable[Row], *, seeds: int = 0) -> list[dict[str, Any]]:
    """The clean networks of a bench with seeds from `seeds` on, ascending by the highest suspicion of any class.

    Each says what it is (`dataset`, `network`, `seed`), the `commit` that measured it, `by` which images, and its
    `suspicion` as tables print it. A row that was not judged is left out.
    """
    found = [
        {name: row.values[name] for name in ("dataset", "network", "seed", "commit")}
        | {"by": row.values["judgement"]["by"], "suspicion": round(max(row.values["judgement"]["suspicion"]), 2)}
        for row in latest(rows, "cell")
        if row.values["attack"] == "none" and row.values["seed"] >= seeds
        if (row.values.get("judgement") or {"calibrated": False}).get("calibrated", True)
    ]
    return sorted(found, key=lambda one: (one["suspicion"], one["dataset"], one["network"], one["seed"]))


def usual(rows: Iterable[Row], *, seeds: int = 0) -> dict[str, tuple[float, float]]:
    """What evidence is usual in a bench's clean networks with seeds from `seeds` on, by kind.

    Of the largest evidence of any class: the median, and 1.48 times the median distance from it, which is a normal
    distribution's standard deviation. Empty where no row tells kinds of evidence.
    """
    largest: dict[str, list[float]] = {}
    for row in latest(rows, "cell"):
        if row.values["attack"] == "none" and row.values["seed"] >= seeds:
            for kind, of_classes in ((row.values.get("judgement") or {}).get("evidence") or {}).items():
                largest.setdefault(kind, []).append(max(of_classes))
    found = {}
    for kind, values in largest.items():
        middle = statistics.median(values)
        found[kind] = (middle, 1.48 * statistics.median(abs(value - middle) for value in values))
    return found


def written(networks: Iterable[Mapping[str, Any]]) -> str:
    """The text of the file, a network a line."""
    return "[\n" + ",\n".join(json.dumps(one) for one in networks) + "\n]\n"


def scores_for(judgement: Mapping[str, Any]) -> tuple[float, ...]:
    """Scores of clean networks that a judgement may be compared with; none where its search was another one."""
    return clean_scores(judgement["by"]) if judgement.get("calibrated", True) else ()


def false_positive_rate(judgement: Mapping[str, Any]) -> float | None:
    """The share of clean networks that score as high as a judgement's suspect; None where that was not measured."""
    scores = scores_for(judgement)
    if judgement["suspect"] is None or not scores:
        return None
    score = judgement["suspicion"][judgement["suspect"]]
    return sum(clean >= score for clean in scores) / len(scores)


def p_value(by: str, score: float) -> float | None:
    """The chance that a clean network scores as high, from those that were judged by these images; None without any.

    `(1 + as high) / (1 + all)`, which no network makes 0: as a conformal prediction does.
    """
    scores = clean_scores(by)
    return (1 + sum(clean >= score for clean in scores)) / (1 + len(scores)) if scores else None


@functools.cache
def clean_scores(by: str, evidence: str = "suspicion") -> tuple[float, ...]:
    """Scores of the clean networks that were judged by these images, ascending; empty where none was.

    Args:
      by: the images, as a judgement's `by` names them.
      evidence: which score; networks without it do not count.
    """
    networks = json.loads(resources.files("otbr_jax.report").joinpath(FILE).read_text(encoding="utf-8"))
    return tuple(sorted(one[evidence] for one in networks if one["by"] == by and one.get(evidence) is not None))
