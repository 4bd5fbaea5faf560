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
from otbr_jax.report.table import TITLES, networks, patching, percent, setting, swept_network, warnings
from otbr_jax.report.verdict import draw_triggers, verdict


def render(
    summary: Mapping[str, Any],
    *,
    scores: Mapping[str, np.ndarray],
    chosen: Mapping[str, np.ndarray],
    plan: tuple[str, np.ndarray] | None,
    triggers: tuple[np.ndarray, np.ndarray] | None = None,
    examples: Figure | None,
) -> str:
    """The page as HTML text, pictures included; it loads nothing from anywhere.

    Args:
      summary: `results.summarize`.
      scores: neuron weight changes, layer name -> `[neurons]`, in execution order.
      chosen: bool masks of the same shapes: the neurons that were pruned or re-initialised.
      plan: name and plan `[neurons, neurons]` of the layer to show, or None if nothing was fused.
      triggers: masks and patterns that were reverse-engineered, a class each, or None.
      examples: images with predictions, or None without data.
    """
    measured = summary["metrics"]["victim"] is not None
    choice = summary["choice"]
    parts = [
        "<h1>Repair of a suspicious classifier</h1>",
        f"<p class=soft>{html.escape(summary['defense'].upper())} · {html.escape(_network(summary))} · "
        f"{setting(choice)}, chosen by {html.escape(choice['chosen_by'])} · {_what_was_done(summary)}</p>",
        *(f"<p class=warn>{html.escape(line)}</p>" for line in warnings(summary)),
    ]
    used = (
        f"The repair itself used {html.escape(summary['clean'])}."
        if summary.get("clean")
        else ("The repair itself used no image.")
    )
    if measured:
        parts += [_tiles(summary), _table(summary)]
        parts.append(f"<p class=soft>Measured on: {html.escape(summary['data'])}. {used}</p>")
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
    if triggers is not None:
        parts += [
            "<h2>Is it backdoored?</h2>",
            f"<p>{html.escape(verdict(summary['judgement']))}.</p>",
            *(f"<p>{html.escape(patching(found))}.</p>" for found in summary.get("patched") or ()),
            embed(
                draw_triggers(*triggers, summary["judgement"]),
                f"The trigger that was reverse-engineered for each class on {summary['judgement']['by']}, most "
                "suspicious first: what it puts on an image, grey where it leaves it. Framed: a class that stands out.",
            ),
        ]
    parts += _otbr_grid(summary) if summary["defense"] == "otbr" else _tsbd_choice(summary)
    kind, did = ("random", "pruned") if summary["defense"] == "otbr" else ("clean", "re-initialised")
    parts += [
        f"<h2>Which neurons {kind} unlearning moved</h2>",
        embed(
            plots.nwc_by_layer(scores, chosen, label=did),
            "One point for each neuron of each repaired layer, in execution order. The neurons whose "
            f"weights changed most over all layers together were {did}. All values are in neuron_scores.csv.",
        ),
    ]
    if plan is not None:
        name, matrix = plan
        parts += [
            "<h2>Where their mass went</h2>",
            embed(
                plots.transport_plan(matrix, chosen[name], layer=name),
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


def _what_was_done(summary: Mapping[str, Any]) -> str:
    neurons = summary["neurons"]
    if summary["defense"] == "otbr":
        return f"{neurons['pruned']} of {neurons['scored']} neurons pruned, {neurons['layers_fused']} layers fused"
    return (
        f"{neurons['weights_zeroed']:,} weights of {neurons['reinitialized']} of {neurons['scored']} neurons "
        f"re-initialised, {len(summary['finetuning']['loss'])} epochs of fine-tuning"
    )


def _otbr_grid(summary: Mapping[str, Any]) -> list[str]:
    if not summary["sweep"]:
        return []
    choice, oracle, network = summary["choice"], summary["oracle"], swept_network(summary["sweep"][0])
    at_chosen = [row for row in summary["sweep"] if row["lambda"] == choice["lambda"]]
    parts = [
        "<h2>Accuracy and backdoor over gamma and lambda</h2>",
        embed(
            plots.grid(summary["sweep"], network=network, chosen=choice, oracle=oracle),
            f"The network {TITLES[network]} at every setting. Framed: the chosen setting." + _hindsight(oracle),
        ),
    ]
    if not at_chosen:  # left alone
        return parts
    return [
        *parts,
        embed(
            plots.tradeoff(at_chosen, network=network, chosen=choice, victim=summary["metrics"]["victim"]),
            f"The same along gamma at lambda {choice['lambda']:g}. Dotted: the suspicious network.",
        ),
    ]


def _tsbd_choice(summary: Mapping[str, Any]) -> list[str]:
    parts = []
    if summary["selection"]:
        parts += [
            "<h2>How n and m were chosen</h2>",
            embed(
                plots.selection(summary["selection"], chosen=summary["choice"]),
                "Each candidate on clean images that its fine-tuning did not see, augmented. Chosen is the largest "
                f"share whose accuracy is at most {100 * summary['config']['selection']['tolerance']:g} points below "
                "the highest. No test image and no trigger was looked at.",
            ),
        ]
    if summary["sweep"]:
        parts += [
            "<h2>Accuracy and backdoor over n m</h2>",
            embed(
                plots.tradeoff(
                    summary["sweep"],
                    network=swept_network(summary["sweep"][0]),
                    chosen=summary["choice"],
                    victim=summary["metrics"]["victim"],
                ),
                "Measured with the test images for comparison only. Dotted: the suspicious network."
                + _hindsight(summary["oracle"]),
            ),
        ]
    return parts


def _hindsight(oracle: Mapping[str, Any] | None) -> str:
    if not oracle:
        return ""
    network = swept_network(oracle)
    drawn = " Dashed: best" if network != "finetuned" else f" At {setting(oracle)} lies the best"
    acc, asr = (percent(oracle[network][metric]) for metric in ("acc", "asr"))
    return (
        f"{drawn} of these in hindsight (ACC {acc}, ASR {asr}), an oracle's choice, made with the trigger and the test "
        "set."
    )


def _tiles(summary: Mapping[str, Any]) -> str:
    before, after = summary["metrics"]["victim"], [*summary["metrics"].values()][-1]
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
    titles = networks(summary)
    final = list(titles)[-1]
    rows = [("final" if name == final else "", title, summary["metrics"][name]) for name, title in titles.items()]
    oracle = summary["oracle"]
    if oracle:
        rows.append(("oracle", f"oracle: {setting(oracle)} (needs the trigger)", oracle[swept_network(oracle)]))
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
