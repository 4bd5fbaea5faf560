"""The page of a study of correlations: do neurons move alike under random, clean and poison unlearning?"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from otbr_jax.report import plots
from otbr_jax.report.html import embed, page
from otbr_jax.report.table import CORRELATIONS, percent


def render(summary: Sequence[Mapping[str, Any]], scores: Sequence[Mapping[str, Mapping[str, Any]]]) -> str:
    """The page as HTML text, pictures included.

    Args:
      summary: `correlation.summarize`.
      scores: for each of its entries NWC by kind of unlearning and layer.
    """
    parts = [
        "<h1>Do neurons move alike?</h1>",
        "<p class=soft>Each network was unlearned three times: on noise with random labels, on clean images, and on "
        "triggered images with the attacker's labels. Neuron weight changes (NWC) of the first two against the third, "
        "which needs the trigger. Where they agree, backdoor neurons can be found without it.</p>",
        _table(summary),
        f"<p class=soft>Overlap: of the {100 * summary[0]['top']:g} % of the neurons that changed most. "
        f"Images: {html.escape(summary[0]['data'])}.</p>",
        "<h2>Layer by layer</h2>",
        embed(plots.correlation_by_layer(summary), "Convolutions (or dense layers) in execution order."),
        "<h2>Neuron by neuron</h2>",
    ]
    for study, found in zip(summary, scores, strict=True):
        figure = plots.nwc_scatter(found, study["with_poison"], attack=study["attack"])
        parts.append(
            embed(figure, f"{html.escape(study['attack'])}: one point for each neuron; all values are in nwc.csv.")
        )
    return page("Correlation of neuron weight changes", parts)


def _table(summary: Sequence[Mapping[str, Any]]) -> str:
    head = "<tr><th rowspan=2>attack</th><th rowspan=2>victim ACC / ASR %</th>" + "".join(
        f"<th colspan=3>{kind} against poison, {part}</th>"
        for kind in ("random", "clean")
        for part in ("all neurons", "last layer")
    )
    head += "</tr><tr>" + 4 * "".join(f"<th>{name}</th>" for name in CORRELATIONS) + "</tr>"
    body = "".join(
        f"<tr><td>{html.escape(study['attack'])}</td>"
        f"<td>{percent(study['victim']['acc'])} / {percent(study['victim']['asr'])}</td>"
        + "".join(
            f"<td>{'-' if found[name] is None else format(found[name], '.2f')}</td>"
            for found in (study["with_poison"][kind][part] for kind in ("random", "clean") for part in ("all", "last"))
            for name in CORRELATIONS
        )
        + "</tr>"
        for study in summary
    )
    return f"<div class=wrap><table>{head}{body}</table></div>"
