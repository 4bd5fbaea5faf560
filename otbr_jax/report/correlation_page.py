"""A study of correlations in words and figures: do neurons change alike in each kind of unlearning?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from otbr_jax.report import html, plots
from otbr_jax.report.numbers import formatted, rates
from otbr_jax.report.table import Column, Table

CORRELATIONS = ("pearson", "spearman", "overlap")
"""How two vectors of neuron weight changes are compared, in the order of the columns."""

_PARTS = {"all": "all neurons", "last": "last layer"}
_PLACES = [(kind, part) for kind in ("random", "clean") for part in _PARTS]


def render(summary: Sequence[Mapping[str, Any]], scores: Sequence[Mapping[str, Mapping[str, Any]]]) -> str:
    """The page as HTML text, figures included.

    Args:
      summary: `correlation.summarize`.
      scores: for each of its entries NWC by kind of unlearning and layer.
    """
    return html.render(
        "correlation.html",
        table=correlation_table(summary),
        data=summary[0]["data"],
        layers=html.embed(plots.correlation_by_layer(summary)),
        neurons={
            study["attack"]: html.embed(plots.nwc_scatter(nwc, study["with_poison"], attack=study["attack"]))
            for study, nwc in zip(summary, scores, strict=True)
        },
    )


def correlation_table(summary: Sequence[Mapping[str, Any]]) -> Table:
    """Correlations of weight changes with those of poison unlearning, of `correlation.summarize`.

    Over all neurons and in the last layer: Pearson, Spearman, overlap of the top neurons.
    """
    columns = [Column("attack", "left"), Column("ACC / ASR %")]
    columns += [Column(_PARTS[part], group=f"{kind} - poison") for kind, part in _PLACES]
    rows = [
        [
            study["attack"],
            rates(study["victim"]),
            *(
                " / ".join(formatted(study["with_poison"][kind][part][name], ".2f") for name in CORRELATIONS)
                for kind, part in _PLACES
            ),
        ]
        for study in summary
    ]
    top = 100 * summary[0]["top"]
    note = f"each: Pearson / Spearman / overlap of the {top:g} % of the neurons that changed most"
    return Table(columns, rows, notes=(note,))
