"""How time and memory of every stage grow: a table of exponents, and a figure. Rows: `benchmarks/growth.py`."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

from otbr_jax.report.numbers import NOTHING, percent
from otbr_jax.report.plots import STYLE
from otbr_jax.report.rows import Row, field, integer, is_flagged, joined, latest, number, text
from otbr_jax.report.table import Cell, Table

FACTORS = {
    "width": "width",
    "depth": "layers",
    "batch": "batch",
    "classes": "classes",
    "side": "side of images",
    "neurons": "neurons of a layer",
}
"""What grows, and its name in words."""
STAGES = {
    "training": "#7f8891",
    "unlearning": "#0072b2",
    "fusion": "#56b4e9",
    "procedural images": "#f0a000",
    "trigger inversion": "#d55e00",
    "maximum margins": "#cc79a7",
    "trigger unlearning": "#009e73",
    "transport": "#24292f",
}
"""The stages, and the colours of their lines."""


def exponents(rows: Sequence[Row]) -> list[Table]:
    """A line for each stage: the exponents of time and of memory by each factor."""
    by_place = {(text(row, "stage", among=STAGES), text(row, "factor", among=FACTORS)): row for row in rows}
    lines = []
    for stage in STAGES:
        cells = []
        for factor in FACTORS:
            row = by_place.get((stage, factor))
            pair = [NOTHING] if row is None else [number(row, f"exponent_{of}", ".1f") for of in ("time", "memory")]
            cells.append(" / ".join(pair).replace("-0.0", "0.0"))
        if any(cell != NOTHING for cell in cells):
            lines.append([stage, *cells])
    return [Table(("time / memory grow as", *FACTORS.values()), lines)]


def large(rows: Sequence[Row]) -> list[Table]:
    """A line for each step and setting of the largest network: memory, and seconds where it ran."""
    lines = [
        [
            text(row, "defense"),
            text(row, "step"),
            text(row, "settings"),
            number(row, "gigabytes", ".1f"),
            number(row, "seconds", ".0f"),
        ]
        for row in latest(rows, "defense", "step", "settings")
    ]
    return [Table(("defence", "step", "settings", "memory, GB", "seconds, where it ran"), lines)]


def growth_figure(rows: Sequence[Row]) -> Figure:
    """CPU seconds and megabytes over each factor, a line for each stage, both axes logarithmic."""
    kept = latest(rows, "stage", "factor")
    factors = [factor for factor in FACTORS if any(text(row, "factor") == factor for row in kept)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.1 * len(factors), 5.0), layout="constrained")
        axes = figure.subplots(2, len(factors), squeeze=False, sharex="col", sharey="row")
        lines = {}
        for column, factor in enumerate(factors):
            for row in (row for row in kept if text(row, "factor") == factor):
                stage, values = text(row, "stage", among=STAGES), field(row, "values")
                for axis, name in zip(axes[:, column], ("cpu_seconds", "megabytes"), strict=True):
                    style = {"color": STAGES[stage], "marker": "o", "ms": 3.5, "lw": 1.4}
                    if None not in field(row, name):
                        (lines[stage],) = axis.plot(values, field(row, name), label=stage, **style)
            for axis in axes[:, column]:
                axis.set(xscale="log", yscale="log")
                axis.minorticks_off()
                axis.grid(axis="y", lw=0.4, color="#d8dee4")
            axes[1, column].set_xticks(values, [f"{value:,}" for value in values])
            axes[1, column].set_xlabel(FACTORS[factor])
        axes[0, 0].set_ylabel("CPU seconds")
        axes[1, 0].set_ylabel("memory, MB")
        shown = [stage for stage in STAGES if stage in lines]
        figure.legend([lines[stage] for stage in shown], shown, loc="outside lower center", ncols=len(shown))
        return figure


def screening(rows: Sequence[Row]) -> list[Table]:
    """A line for each victim: how many screenings kept the attacker's class among so many, and the verdicts."""
    among, lines = field(rows[0], "among"), list[list[Cell]]()
    for row in latest(rows, "attack"):
        kept = row.values.get("kept") or [None] * len(among)
        counts = [NOTHING if each is None else f"{each} of {integer(row, 'screenings')}" for each in kept]
        verdicts = [_verdict(row, name) for name in ("of_some", "of_all")]
        lines.append(
            [text(row, "attack"), joined([percent(field(row, name)) for name in ("acc", "asr")]), *counts, *verdicts]
        )
    titles = (
        "attack",
        "ACC / ASR",
        *(f"kept among {each}" for each in among),
        f"verdict among {among[-1]}",
        "verdict among all",
    )
    return [Table(titles, lines)]


def _verdict(row: Row, name: str) -> str:
    """A verdict in a cell: the class that scores highest, in brackets if none is flagged."""
    if row.values.get(name) is None:
        return NOTHING
    highest = f"class {integer(row, f'{name}.suspect')}, {number(row, f'{name}.score', '.1f')}"
    return highest if is_flagged(row, name) else f"none ({highest})"
