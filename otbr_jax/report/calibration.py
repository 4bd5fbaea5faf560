"""The scores of clean networks in benches: `python -m launch.calibrate`.

`otbr_jax/detectors/calibration.json` has an entry for each detector that clean networks were scored by:

- `networks`: a clean network each, ascending by its `score`, and what it is. P-values compare with these.
- `networks_from`: which rows those are.
- `evidence`: by kind, `[median, deviation]` of the largest evidence of any class in clean networks. The detector
  `trigger_size` counts in these deviations, so that others change the score of every network.
- `evidence_from`: where those come from.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from otbr_jax.report.rows import Row, latest


class Source(NamedTuple):
    """Where a detector's clean networks stand: rows of `results/BENCH.jsonl` with seeds from `seeds` on.

    Those of lower seeds are reported, and so set no threshold.
    """

    bench: str
    seeds: int


SOURCES = {"otbr_plus": Source("bench_otbr_plus", 0), "trigger_size": Source("bench_disarm", 10)}
"""By the detector's name."""

LEAST_DEVIATION = 0.15
"""Of evidence in clean networks: what is counted as a deviation at least."""


def clean_rows(rows: Iterable[Row], source: Source) -> list[Row]:
    """The rows of clean networks that count, the last one of each, scored with the usual evidence."""
    return [
        row
        for row in latest(rows, "cell")
        if row.values["attack"] == "none" and row.values["seed"] >= source.seeds and row.values.get("verdict")
        if (row.values.get("detection") or {}).get("calibrated", True)
    ]


def networks(rows: Iterable[Row], source: Source) -> list[dict[str, Any]]:
    """The clean networks, ascending by score: what each is, the `commit` that measured it, and its `score`."""
    scored = [
        {name: row.values[name] for name in ("dataset", "network", "seed", "commit")}
        | {"score": round(max(row.values["verdict"]["scores"]), 2)}
        for row in clean_rows(rows, source)
    ]
    return sorted(scored, key=lambda one: (one["score"], one["dataset"], one["network"], one["seed"]))


def clean_evidence(rows: Iterable[Row], source: Source) -> dict[str, list[float]]:
    """The evidence of clean networks, by kind: `{kind: [median, deviation]}`.

    Of the largest evidence of any class: the median, and 1.48 times the median distance from it, which is a normal
    distribution's standard deviation, but at least `LEAST_DEVIATION`. Empty where no row has kinds of evidence.
    """
    largest: dict[str, list[float]] = {}
    for row in clean_rows(rows, source):
        for kind, of_classes in (row.values["verdict"].get("evidence") or {}).items():
            largest.setdefault(kind, []).append(max(value for value in of_classes if value is not None))
    statistics_of = {}
    for kind, values in largest.items():
        middle = statistics.median(values)
        deviation = 1.48 * statistics.median(abs(value - middle) for value in values)
        statistics_of[kind] = [round(middle, 2), round(max(deviation, LEAST_DEVIATION), 2)]
    return statistics_of


def updated(
    file: Mapping[str, Any], rows: Mapping[str, Iterable[Row]], *, evidence: bool = False
) -> dict[str, dict[str, Any]]:
    """The contents of the file, its networks as these rows say; its evidence stays, unless `evidence` is true.

    Args:
      file: the contents so far.
      rows: of the bench of each of `SOURCES`, by the detector's name.
      evidence: whether to replace the evidence of clean networks, too, for detectors that need it.
    """
    contents = {}
    for name, source in SOURCES.items():
        own, listed = dict(file.get(name, {})), list(rows[name])
        seeds = f", seeds from {source.seeds} on" if source.seeds else ""
        where = f"clean networks of results/{source.bench}.jsonl{seeds}"
        if evidence and "evidence" in own:
            own["evidence"] = clean_evidence(listed, source)
            own["evidence_from"] = f"launch.calibrate --evidence: {where}"
        contents[name] = own | {"networks_from": f"launch.calibrate: {where}", "networks": networks(listed, source)}
    return contents


def written(contents: Mapping[str, Mapping[str, Any]]) -> str:
    """The text of the file: a network a line, and a kind of evidence a line."""

    def one(value: Any) -> str:
        if isinstance(value, list):
            return "[\n   " + ",\n   ".join(json.dumps(each) for each in value) + "\n  ]"
        if isinstance(value, dict):
            return (
                "{\n   "
                + ",\n   ".join(f"{json.dumps(key)}: {json.dumps(each)}" for key, each in value.items())
                + "\n  }"
            )
        return json.dumps(value)

    entries = (
        f" {json.dumps(name)}: {{\n  "
        + ",\n  ".join(f"{json.dumps(key)}: {one(value)}" for key, value in of.items())
        + "\n }"
        for name, of in contents.items()
    )
    return "{\n" + ",\n".join(entries) + "\n}\n"
