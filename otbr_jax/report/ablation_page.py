"""An ablation in words and figures: what the parts of TSBD are worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from otbr_jax.report import html
from otbr_jax.report.numbers import NOTHING, percent, rates
from otbr_jax.report.plots import STYLE
from otbr_jax.report.table import Column, Table

Rows = Sequence[Mapping[str, Any]]

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
NOTES = {
    "what is set to zero": "of the neurons with the highest NWC",
    "fine-tuning": "after sub-weights were set to zero",
    "which neurons": "sub-weights of other neurons than those with the highest NWC",
    "poisoned": "share of the training images with the trigger",
    "clean images": "share of the training images that the defender has",
}
"""The comparisons, in order, and what they are about."""


def attacks(rows: Rows) -> list[str]:
    """The attacks, in order of appearance."""
    return list(dict.fromkeys(row["attack"] for row in rows))


def compared(rows: Rows, comparison: str, attack: str) -> dict[str, list[dict[str, float]]]:
    """The curves of a comparison for an attack's victims: `{variant: [{n, acc, asr}]}`, rows of `ablation.rows`.

    Fine-tuning is also compared with none, the network before it.
    """
    curves: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        if row["attack"] == attack and comparison in row["compared"]:
            name = row["compared"][comparison]
            parts = {name: "finetuned"}
            if comparison == "fine-tuning" and name == "activeness-aware":
                parts = {"none": "reinitialized"} | parts
            for title, part in parts.items():
                curves[title] = [{"n": at["n"], "acc": at[part]["acc"], "asr": at[part]["asr"]} for at in row["curve"]]
    if comparison in ("poisoned", "clean images"):
        curves = dict(sorted(curves.items(), key=lambda item: -float(item[0].removesuffix(" %"))))
    return curves


def overlaps(rows: Rows, attack: str) -> dict[str, Mapping[str, float]]:
    """How well each choice of neurons finds those that the trigger activates: `{choice: row's tac_overlap}`."""
    name = "which neurons"
    return {
        row["compared"][name]: row["tac_overlap"] for row in rows if row["attack"] == attack and name in row["compared"]
    }


def victims(rows: Rows, comparison: str, attack: str) -> dict[str, Mapping[str, float]]:
    """The victims of a comparison: `{variant: ACC and ASR}`."""
    return {
        row["compared"][comparison]: row["victim"]
        for row in rows
        if row["attack"] == attack and comparison in row["compared"]
    }


def by_attack(rows: Rows) -> dict[str, Rows]:
    """The rows of each attack's victims, in order of appearance."""
    return {attack: [row for row in rows if row["attack"] == attack] for attack in attacks(rows)}


def comparison_table(groups: Mapping[str, Rows], *, n: float | None = None) -> Table:
    """ACC / ASR in per cent of every variant of every comparison, a column for each group of rows of one attack.

    Args:
      groups: rows by the title of their column.
      n: the share of neurons that the table is about; that of the rows if it is left out.
    """
    lines = []
    for comparison in NOTES:
        curves = {title: compared(rows, comparison, rows[0]["attack"]) for title, rows in groups.items()}
        for name in dict.fromkeys(name for own in curves.values() for name in own):
            cells = [
                rates(_at(curves[title][name], rows[0]["n"] if n is None else n)) if name in curves[title] else NOTHING
                for title, rows in groups.items()
            ]
            lines.append([comparison, name, *cells])
    return Table(("comparison", Column("variant", "left"), *groups), lines)


def victim_table(groups: Mapping[str, Rows]) -> Table:
    """ACC / ASR in per cent of the victims before any repair, by the share of poisoned training images."""
    measured = {title: victims(rows, "poisoned", rows[0]["attack"]) for title, rows in groups.items()}
    first = {title: {"as configured": rows[0]["victim"]} for title, rows in groups.items()}
    measured = {title: own or first[title] for title, own in measured.items()}
    shares = dict.fromkeys(share for own in measured.values() for share in own)
    lines = [
        [share, *(rates(own[share]) if share in own else NOTHING for own in measured.values())] for share in shares
    ]
    return Table(("poisoned", *groups), lines)


def overlap_table(groups: Mapping[str, Rows]) -> Table:
    """How many of the trigger-activated neurons each choice finds, in per cent: mean over layers / last layer."""
    known = {title: overlaps(rows, rows[0]["attack"]) for title, rows in groups.items()}
    lines = [
        [
            name,
            *(
                f"{percent(own[name]['layers'])} / {percent(own[name]['last'])}" if name in own else NOTHING
                for own in known.values()
            ),
        ]
        for name in dict.fromkeys(name for own in known.values() for name in own)
    ]
    return Table(("found by", *groups), lines)


def tables(rows: Rows, *, n: float) -> str:
    """The three tables as fixed-width text, at one n."""
    groups, top = by_attack(rows), 100 * rows[0]["tac_overlap"]["top"]
    captioned = (
        ("Victims: ACC / ASR, %", victim_table(groups)),
        (f"Repaired at n {n:g}, m {rows[0]['m']:g}: ACC / ASR, %", comparison_table(groups, n=n)),
        (f"Trigger-activated neurons, top {top:g} %, found: mean over layers / last layer, %", overlap_table(groups)),
    )
    return "\n\n".join(dataclasses.replace(table, caption=caption).text() for caption, table in captioned)


def figure(rows: Rows) -> Figure:
    """ACC (dashed) and ASR over n: a row for each attack, a panel for each comparison."""
    names = attacks(rows)
    with mpl.rc_context(STYLE):
        drawn = Figure(figsize=(2.2 * len(NOTES), 1.2 + 2.1 * len(names)), layout="constrained")
        axes = drawn.subplots(len(names), len(NOTES), squeeze=False, sharex=True, sharey=True)
        for line, attack in zip(axes, names, strict=True):
            for axis, comparison in zip(line, NOTES, strict=True):
                for color, (name, curve) in zip(COLORS, compared(rows, comparison, attack).items(), strict=False):
                    at = [point["n"] for point in curve]
                    axis.plot(at, [100 * point["asr"] for point in curve], "-", color=color, marker="o", ms=3.5)
                    axis.plot(at, [100 * point["acc"] for point in curve], "--", color=color, marker="o", ms=2.5)
                    axis.plot([], [], "-", color=color, label=name)
                axis.set_ylim(-4, 104)
            line[0].set_ylabel(f"{attack}: per cent")
        for comparison, highest, lowest in zip(NOTES, axes[0], axes[-1], strict=True):
            highest.set_title(comparison)
            lowest.set_xlabel("n, share of neurons")
            lowest.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28))
        return drawn


def render(rows: Rows, *, n: float) -> str:
    """The page as HTML text, figures included; tables are about one n."""
    groups = by_attack(rows)
    return html.render(
        "ablation.html",
        first=rows[0],
        n=n,
        notes=NOTES,
        victims=victim_table(groups),
        repaired=comparison_table(groups, n=n),
        overlaps=overlap_table(groups),
        curves=html.embed(figure(rows)),
    )


def _at(curve: Sequence[Mapping[str, float]], n: float) -> Mapping[str, float]:
    return next(point for point in curve if point["n"] == n)
