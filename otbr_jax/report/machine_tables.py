"""What devices and hosts do together, as tables. Rows: `benchmarks/devices.py`, `benchmarks/hosts.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from otbr_jax.errors import InputError
from otbr_jax.report.numbers import NOTHING
from otbr_jax.report.rows import Row, field, integer, latest, number
from otbr_jax.report.table import Cell, Table

KINDS = ("all-reduce", "all-gather")


def devices(rows: Sequence[Row]) -> list[Table]:
    """A line for each stage that devices share: what they exchange, and how far results are from one's."""
    row, lines = rows[-1], list[list[Cell]]()
    stages = field(row, "stages")
    if not isinstance(stages, Mapping):
        raise InputError(f"{row.place}: stages: expected an object, found {stages!r}")
    for name in stages:
        stage = Row(row.place, stages[name])
        collectives = field(stage, "collectives")
        if not collectives:
            continue
        cells: list[Cell] = [name]
        for kind in KINDS:
            for part in ("instructions", "largest"):
                own = Row(row.place, collectives.get(kind, {}))
                cells.append(str(integer(own, part)) if kind in collectives else NOTHING)
        lines.append([*cells, number(stage, "apart", ".5f")])
    titles = ("stage", "sums", "largest, bytes", "gathered", "largest, bytes", "differs from one device by")
    return [Table(titles, lines)]


def hosts(rows: Sequence[Row]) -> list[Table]:
    """A line for each number of processes: how far from one, and what happened where one was killed."""
    lines = []
    for row in latest(
        [Row(row.place, {**row.values, "name": str(row.values.get("processes"))}) for row in rows], "name"
    ):
        cells: list[Cell] = [str(integer(row, "processes")), number(row, "metrics_apart", ".4f")]
        kills = row.values.get("kills")
        if kills is None:
            lines.append([*cells, *[NOTHING] * 4])
            continue
        counts = [f"{integer(row, name)} of {integer(row, 'kills')}" for name in ("clear_lines", "same_bits")]
        lines.append([*cells, str(integer(row, "kills")), *counts, number(row, "slowest_end_s", ".1f")])
    titles = (
        "processes", "ACC, ASR and RA differ by", "kills", "others end with a line", "same bits afterwards",
        "slowest end, s",
    )  # fmt: skip
    return [Table(titles, lines)]
