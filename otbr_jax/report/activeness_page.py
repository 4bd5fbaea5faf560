"""The study of activeness in words and figures: are the neurons of a backdoored network more active?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from otbr_jax.report import html, plots
from otbr_jax.report.numbers import formatted, rates
from otbr_jax.report.table import Column, Table

SCORES = {
    "average_activeness": "average activeness, last layer",
    "maximum_activeness": "maximum activeness, last layer",
    "maximum_over_median": "maximum / median, last layer",
    "nwc_top_1_percent": "share of NWC in 1 % of the neurons",
    "nwc_top_5_percent": "share of NWC in 5 % of the neurons",
    "nwc_gini": "Gini coefficient of NWC",
}
"""The scores in words, in the order of the columns."""

_ACTIVENESS, _NWC = "activeness, last layer", "NWC, all neurons"
_COLUMNS = (
    Column("attack", "left"),
    Column("seed"),
    Column("ACC / ASR %"),
    *(Column(title, group=_ACTIVENESS) for title in ("average", "maximum", "max / median")),
    *(Column(title, group=_NWC) for title in ("top 1 %", "top 5 %", "Gini")),
)


def render(summary: Mapping[str, Any], means: Sequence[Mapping[str, Any]]) -> str:
    """The page as HTML text, figures included.

    Args:
      summary: `activeness_study.summarize`.
      means: for each of its victims the mean activeness of every neuron, `{layer name: [neurons]}`.
    """
    both = summary["clean"] and summary["backdoored"]
    return html.render(
        "activeness.html",
        summary=summary,
        table=activeness_table(summary),
        last=plots.short_name(list(means[0])[-1]),
        neurons=html.embed(plots.activeness_by_neuron(summary["victims"], means)),
        curves=html.embed(plots.roc_curves(summary["detection"], SCORES)) if both else None,
    )


def activeness_table(summary: Mapping[str, Any]) -> Table:
    """Victims, their scores, and the AUC of each score, of `activeness_study.summarize`."""
    rows = [
        [one["attack"], str(one["seed"]), rates(one["victim"]), *_cells(one["scores"])] for one in summary["victims"]
    ]
    aucs = _cells({name: curve["auc"] for name, curve in summary["detection"].items()})
    networks = f"AUC, {summary['backdoored']} backdoored, {summary['clean']} clean"
    return Table(_COLUMNS, [*rows, [networks, "", "", *aucs]], kinds=[*("" for _ in rows), "total"])


def _cells(scores: Mapping[str, float | None]) -> list[str]:
    return [formatted(scores[name], ".3g") for name in SCORES]
