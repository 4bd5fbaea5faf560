"""The study of activeness in words and pictures: are the neurons of a backdoored network more active?"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from otbr_jax.report import plots
from otbr_jax.report.html import embed, page
from otbr_jax.report.table import percent

SCORES = {
    "average_activeness": "average activeness, last layer",
    "maximum_activeness": "maximum activeness, last layer",
    "maximum_over_median": "maximum / median, last layer",
    "nwc_top_1_percent": "share of NWC in 1 % of the neurons",
    "nwc_top_5_percent": "share of NWC in 5 % of the neurons",
    "nwc_gini": "Gini coefficient of NWC",
}
"""The scores in words, in the order of the columns."""

_HEADS = ("average", "maximum", "max / median", "top 1 %", "top 5 %", "Gini")


def render(summary: Mapping[str, Any], means: Sequence[Mapping[str, Any]]) -> str:
    """The page as HTML text, pictures included.

    Args:
      summary: `activeness_study.summarize`.
      means: for each of its victims the mean activeness of every neuron, `{layer name: [neurons]}`.
    """
    victims, last = summary["victims"], plots.short_name(list(means[0])[-1])
    parts = [
        "<h1>Are the neurons of a backdoored network more active?</h1>",
        f"<p class=soft>Each network was unlearned for {summary['steps']} steps on batches of the same kind: "
        f"{summary['images']} clean images, no trigger. Activeness is the norm of the gradient of a neuron's weights, "
        "averaged over the steps; NWC, how far they moved.</p>",
        _table(summary),
        f"<p class=soft>Activeness: of the last scored layer, {html.escape(last)}. Images: "
        f"{html.escape(summary['data'])}.</p>",
        "<h2>Neuron by neuron, and layer by layer</h2>",
        embed(
            plots.activeness_by_neuron(victims, means),
            "Thin lines are single networks, thick ones their mean over an attack's seeds. Left: neurons of the "
            "last scored layer, the most active ones first; all values are in activeness.csv.",
        ),
        "<h2>Does a score tell them apart?</h2>",
    ]
    if summary["clean"] and summary["backdoored"]:
        caption = (
            f"{summary['backdoored']} backdoored against {summary['clean']} clean networks; AUC, the chance that a "
            "backdoored one scores higher, is 0.5 for a score that says nothing and below it for one that is lower "
            "in backdoored networks."
        )
        parts.append(embed(plots.roc_curves(summary["detection"], SCORES), caption))
    else:
        parts.append("<p>That takes networks of both kinds, with and without a backdoor.</p>")
    return page("Activeness of neurons", parts)


def activeness_table(summary: Mapping[str, Any]) -> str:
    """Victims, their scores, and the AUC of each score, of `activeness_study.summarize`, as fixed-width text."""
    heads = "".join(f"{name:>14}" for name in _HEADS)
    lines = [
        f"{'':<26}{'':>14}{'activeness, last layer':>42}{'NWC, all neurons':>42}",
        f"{'attack':<20}{'seed':>6}{'ACC / ASR %':>14}{heads}",
        "-" * 124,
    ]
    for one in summary["victims"]:
        cells = "".join(f"{_short(one['scores'][name]):>14}" for name in SCORES)
        lines.append(f"{one['attack']:<20}{one['seed']:>6}{_rates(one):>14}{cells}")
    aucs = "".join(f"{_short(summary['detection'][name]['auc']):>14}" for name in SCORES)
    return "\n".join([*lines, "-" * 124, f"{_judged(summary):<40}{aucs}"])


def _table(summary: Mapping[str, Any]) -> str:
    head = (
        "<tr><th rowspan=2>attack</th><th rowspan=2>seed</th><th rowspan=2>ACC / ASR %</th>"
        "<th colspan=3>activeness, last layer</th><th colspan=3>NWC, all neurons</th></tr>"
        f"<tr>{''.join(f'<th>{name}</th>' for name in _HEADS)}</tr>"
    )
    body = "".join(
        f"<tr><td>{html.escape(one['attack'])}</td><td>{one['seed']}</td><td>{_rates(one)}</td>"
        f"{_cells(one['scores'])}</tr>"
        for one in summary["victims"]
    )
    aucs = _cells({name: curve["auc"] for name, curve in summary["detection"].items()})
    return (
        f"<div class=wrap><table>{head}{body}"
        f"<tr class=final><td colspan=3>{_judged(summary)}</td>{aucs}</tr></table></div>"
    )


def _cells(scores: Mapping[str, float | None]) -> str:
    return "".join(f"<td>{_short(scores[name])}</td>" for name in SCORES)


def _judged(summary: Mapping[str, Any]) -> str:
    return f"AUC, {summary['backdoored']} backdoored, {summary['clean']} clean"


def _rates(one: Mapping[str, Any]) -> str:
    return f"{percent(one['victim']['acc'])} / {percent(one['victim']['asr'])}"


def _short(value: float | None) -> str:
    """Three significant digits, such as `0.0123`; None -> a hyphen."""
    return "-" if value is None else f"{value:.3g}"
