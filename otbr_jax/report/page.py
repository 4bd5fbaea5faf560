"""The report of a run: one self-contained HTML page."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from otbr_jax.report import plots
from otbr_jax.report.html import embed, page
from otbr_jax.report.table import ROWS, not_converged, percent


def render(
    summary: Mapping[str, Any],
    *,
    scores: Mapping[str, np.ndarray],
    pruned: Mapping[str, np.ndarray],
    plan: tuple[str, np.ndarray] | None,
    examples: Figure | None,
) -> str:
    """The page as HTML text, pictures included; it loads nothing from anywhere.

    Args:
      summary: `results.summarize`.
      scores: neuron weight changes, layer name -> `[neurons]`, in execution order.
      pruned: bool masks of the same shapes.
      plan: name and plan `[neurons, neurons]` of the layer to show, or None if nothing was fused.
      examples: images with predictions, or None without data.
    """
    measured = summary["metrics"]["victim"] is not None
    choice, neurons = summary["choice"], summary["neurons"]
    parts = [
        "<h1>Repair of a suspicious classifier</h1>",
        f"<p class=soft>{html.escape(summary['defense'].upper())} · {html.escape(_network(summary))} · "
        f"gamma {choice['gamma']:g}, lambda {choice['lambda']:g}, chosen by {html.escape(choice['chosen_by'])} · "
        f"{neurons['pruned']} of {neurons['scored']} neurons pruned, {neurons['layers_fused']} layers fused</p>",
        _warning(summary),
    ]
    if measured:
        parts += [_tiles(summary), _table(summary)]
        parts.append(f"<p class=soft>Measured on: {html.escape(summary['data'])}. The repair itself used no image.</p>")
    else:
        parts.append(
            "<p class=warn>No test images were given, so nothing was measured: whether the backdoor is gone is "
            "<b>not known</b>. Give images with <code>--config.data.name=npz --config.data.path=…</code>.</p>"
        )
    if examples is not None:
        parts += [
            "<h2>What the network answers</h2>",
            embed(
                examples,
                "The first test image of each class but the attacker's, without and with the trigger. "
                "Blue: right. Orange: the attacker's class. Brown: another wrong class.",
            ),
        ]
    if summary["sweep"]:
        oracle = summary["oracle"]
        hindsight = (
            f" Dashed: best of these in hindsight (ACC {percent(oracle['fused']['acc'])}, "
            f"ASR {percent(oracle['fused']['asr'])}), an oracle's choice, made with the trigger and the test set."
            if oracle
            else ""
        )
        at_chosen = [row for row in summary["sweep"] if row["lambda"] == choice["lambda"]]
        parts += [
            "<h2>Accuracy and backdoor over gamma and lambda</h2>",
            embed(
                plots.grid(summary["sweep"], chosen=choice, oracle=oracle),
                "The repaired network at every setting. Framed: the chosen setting." + hindsight,
            ),
            embed(
                plots.gamma_tradeoff(at_chosen, chosen=choice, victim=summary["metrics"]["victim"]),
                f"The same along gamma at lambda {choice['lambda']:g}. Dotted: the suspicious network.",
            ),
        ]
    parts += [
        "<h2>Which neurons random unlearning moved</h2>",
        embed(
            plots.nwc_by_layer(scores, pruned),
            "One point for each neuron of each repaired layer, in execution order. The neurons whose "
            "weights changed most over all layers together were pruned. All values are in neuron_scores.csv.",
        ),
    ]
    if plan is not None:
        name, matrix = plan
        parts += [
            "<h2>Where their mass went</h2>",
            embed(
                plots.transport_plan(matrix, pruned[name], layer=name),
                "The transport plan of the fused layer that lost most neurons. Every original neuron is replaced, in "
                "part, by the mixture of pruned-network neurons in its column; suspicious neurons receive most.",
            ),
        ]
    parts += ["<h2>How it was made</h2>", _stages(summary)]
    parts.append(
        f"<details><summary>All settings</summary><pre>{html.escape(json.dumps(summary['config'], indent=1))}</pre>"
        "</details>"
    )
    return page("Repair report", parts)


def _network(summary: Mapping[str, Any]) -> str:
    model = summary["config"]["model"]
    source = os.path.basename(os.path.normpath(model["checkpoint"])) if model["checkpoint"] else "victim trained here"
    return f"{model['name']}, width {model['width']} ({source})"


def _warning(summary: Mapping[str, Any]) -> str:
    if summary["transport"]["converged"]:
        unconverged = ", ".join(f"{gamma:g}" for gamma in not_converged(summary["sweep"]))
        return (
            f"<p class=warn>Transport did not converge for the grid's gamma {unconverged}.</p>" if unconverged else ""
        )
    return (
        f"<p class=warn>Transport did not converge: worst marginal error "
        f"{summary['transport']['worst_marginal_error']:.2g} after {summary['transport']['most_iterations']} "
        "iterations.</p>"
    )


def _tiles(summary: Mapping[str, Any]) -> str:
    before, after = summary["metrics"]["victim"], summary["metrics"]["fused"]
    tiles = [("acc", "accuracy on clean images, %"), ("asr", "attack success rate, %"), ("ra", "triggered, right, %")]
    return (
        "<div class=tiles>"
        + "".join(
            f"<div class=tile><b>{percent(before[metric])} → {percent(after[metric])}</b><span>{text}</span></div>"
            for metric, text in tiles
        )
        + "</div>"
    )


def _table(summary: Mapping[str, Any]) -> str:
    rows = [("final" if name == "fused" else "", ROWS[name], summary["metrics"][name]) for name in ROWS]
    oracle = summary["oracle"]
    if oracle:
        name = f"oracle: gamma {oracle['gamma']:g}, lambda {oracle['lambda']:g} (needs the trigger)"
        rows.append(("oracle", name, oracle["fused"]))
    body = "".join(
        f"<tr class='{kind}'><td>{title}</td>"
        + "".join(f"<td>{percent(row[metric])}</td>" for metric in ("acc", "asr", "ra"))
        + f"<td>{'-' if row['der'] is None else format(row['der'], '.3f')}</td></tr>"
        for kind, title, row in rows
    )
    head = "<tr><th>network</th><th>ACC %</th><th>ASR %</th><th>RA %</th><th>DER</th></tr>"
    return f"<div class=wrap><table>{head}{body}</table></div>"


def _stages(summary: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{name}</td><td>{stage['seconds']:.1f}</td><td>{'reloaded' if stage['resumed'] else 'computed'}</td>"
        f"<td><code>{stage['digest'][:12]}</code></td></tr>"
        for name, stage in summary["stages"].items()
    )
    libraries = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    head = "<tr><th>stage</th><th>seconds</th><th>this run</th><th>hash of its values</th></tr>"
    return (
        f"<div class=wrap><table>{head}{rows}</table></div>"
        f"<p class=soft>Devices: {html.escape(', '.join(summary['devices']))}. {html.escape(libraries)}.</p>"
    )
