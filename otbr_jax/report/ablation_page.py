"""An ablation in words and pictures: what the parts of TSBD are worth."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from otbr_jax.report.html import embed, page
from otbr_jax.report.plots import STYLE
from otbr_jax.report.table import percent

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
    """What a comparison says of an attack's victims: `{variant: [{n, acc, asr}]}`, rows of `ablation.rows`.

    Fine-tuning is also compared with none, the network before it.
    """
    found: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        if row["attack"] == attack and comparison in row["compared"]:
            name = row["compared"][comparison]
            parts = {name: "finetuned"}
            if comparison == "fine-tuning" and name == "activeness-aware":
                parts = {"none": "reinitialized"} | parts
            for title, part in parts.items():
                found[title] = [{"n": at["n"], "acc": at[part]["acc"], "asr": at[part]["asr"]} for at in row["curve"]]
    if comparison in ("poisoned", "clean images"):
        found = dict(sorted(found.items(), key=lambda item: -float(item[0].removesuffix(" %"))))
    return found


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


def tables(rows: Rows, *, n: float) -> str:
    """ACC / ASR in per cent at one n, attack by attack, as fixed-width text."""
    lines = []
    for attack in attacks(rows):
        victim = next(row["victim"] for row in rows if row["attack"] == attack)
        lines += [f"{attack}: victim {_rates(victim)}, n {n:g}, m {rows[0]['m']:g}", "-" * 66]
        for comparison in NOTES:
            for index, (name, curve) in enumerate(compared(rows, comparison, attack).items()):
                own = victims(rows, comparison, attack).get(name, victim)
                before = f"  victim {_rates(own)}" if comparison == "poisoned" else ""
                lines.append(f"{'' if index else comparison:<22}{name:<20}{_rates(_at(curve, n)):>14}{before}")
        top = 100 * rows[0]["tac_overlap"]["top"]
        lines.append(f"{f'trigger-activated neurons, top {top:g} % of each layer, found by':<66}")
        lines += [
            f"{'':<22}{name:<20}{percent(found['layers']):>14}  last layer {percent(found['last'])}"
            for name, found in overlaps(rows, attack).items()
        ]
        lines.append("")
    return "\n".join(lines).rstrip()


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
    """The page as HTML text, pictures included; tables are about one n."""
    first = rows[0]
    parts = [
        "<h1>What the parts of TSBD are worth</h1>",
        f"<p class=soft>{html.escape(first['dataset'])}, {html.escape(first['network'])}. Each line differs from TSBD "
        f"in one thing: n {n:g}, m {first['m']:g}, {100 * first['clean_fraction']:g} % clean images, "
        f"{100 * first['poisoning_ratio']:g} % poisoned. ACC / ASR in per cent, on the test images. Images: "
        f"{html.escape(first['data'])}.</p>",
        embed(figure(rows), "ASR (solid) and ACC (dashed) over the share of neurons."),
    ]
    for comparison, note in NOTES.items():
        parts.append(f"<h2>{comparison[0].upper()}{comparison[1:]}</h2><p class=soft>{note}.</p>")
        parts.append(_table(rows, comparison, n=n))
    top = 100 * first["tac_overlap"]["top"]
    parts.append(
        "<h2>Trigger-activated neurons</h2><p class=soft>Of the neurons of a layer whose output the trigger moves "
        f"furthest (TAC, top {top:g} %), how many each choice puts among its first {top:g} %.</p>"
    )
    body = "".join(
        f"<tr><td>{html.escape(attack)}</td><td>{html.escape(name)}</td><td>{percent(found['layers'])}</td>"
        f"<td>{percent(found['last'])}</td></tr>"
        for attack in attacks(rows)
        for name, found in overlaps(rows, attack).items()
    )
    head = "<tr><th>attack</th><th>choice</th><th>mean over layers, %</th><th>last layer, %</th></tr>"
    parts.append(f"<div class=wrap><table>{head}{body}</table></div>")
    return page("What the parts of TSBD are worth", parts)


def _table(rows: Rows, comparison: str, *, n: float) -> str:
    names = attacks(rows)
    head = "<tr><th></th>" + "".join(f"<th>{html.escape(attack)}</th>" for attack in names) + "</tr>"
    found = {attack: compared(rows, comparison, attack) for attack in names}
    body = "".join(
        f"<tr><td>{html.escape(variant)}</td>"
        + "".join(f"<td>{_rates(_at(found[attack][variant], n))}</td>" for attack in names)
        + "</tr>"
        for variant in found[names[0]]
    )
    return f"<div class=wrap><table>{head}{body}</table></div>"


def _at(curve: Sequence[Mapping[str, float]], n: float) -> Mapping[str, float]:
    return next(point for point in curve if point["n"] == n)


def _rates(found: Mapping[str, float]) -> str:
    return f"{percent(found['acc'])} / {percent(found['asr'])}"
