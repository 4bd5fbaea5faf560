"""The report of a run: one self-contained HTML page. A section appears where the summary has its data."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from otbr_jax.detectors.verdict import Verdict, in_words, read_verdict
from otbr_jax.report import html, plots
from otbr_jax.report.html import EmbeddedFigure
from otbr_jax.report.numbers import formatted, percent, rates
from otbr_jax.report.questions import answer_questions
from otbr_jax.report.summary import (
    choice_in_words,
    metrics_table,
    screening,
    setting_in_words,
    title,
    trigger_finetuning_in_words,
    unlearning_in_words,
)
from otbr_jax.report.table import Cell, Code, Column, Table, markup
from otbr_jax.report.verdict import draw_triggers

_PARTS = ("compile", "run", "transfer", "disk")


def render(
    summary: Mapping[str, Any],
    *,
    scores: Mapping[str, np.ndarray],
    chosen: Mapping[str, np.ndarray],
    plan: tuple[str, np.ndarray] | None = None,
    triggers: tuple[np.ndarray, np.ndarray] | None = None,
    examples: Figure | None = None,
    files: Sequence[str] = (),
) -> str:
    """The page as HTML text, figures included; it loads nothing from anywhere.

    Args:
      summary: `results.summarize`; of its fields, `metrics`, `choice`, `did` and `done` are enough.
      scores: of neurons, layer name -> `[neurons]`, in execution order; may be empty.
      chosen: bool masks of the same shapes: the neurons that were changed.
      plan: name and plan `[neurons, neurons]` of the layer to show, or None if nothing was fused.
      triggers: `Verdict.triggers`, which a summary leaves out, or None.
      examples: images with predictions, or None without data.
      files: names of the files beside the page that hold the network.
    """
    verdict, neurons = None if summary.get("verdict") is None else read_verdict(summary["verdict"]), None
    if scores:
        score = {"score": summary["score"]} if "score" in summary else {}
        neurons = html.embed(plots.nwc_by_layer(scores, chosen, label=summary["did"], **score))
    return html.render(
        "repair.html",
        summary=summary,
        subtitle=" · ".join((*_subject(summary), choice_in_words(summary), summary["done"])),
        answers=answer_questions(summary, files=files),
        sentence=_sentence,
        measured=all(summary["metrics"].values()),
        metrics=metrics_table(summary),
        examples=None if examples is None else html.embed(examples),
        trigger_known=summary.get("config", {}).get("attack", {}).get("name") != "none",
        detected=None if verdict is None else _detected(summary, verdict),
        triggers=None if triggers is None or verdict is None else html.embed(draw_triggers(verdict, triggers)),
        scored=None if verdict is None else _scored(verdict),
        selection=_selection(summary),
        grid=_grid(summary),
        tradeoff=_tradeoff(summary),
        sweep=_sweep(summary),
        swept=title(summary["swept"]) if summary.get("swept") else None,
        best=_best(summary),
        screening=screening(summary),
        neurons=neurons,
        plan=None if plan is None else html.embed(plots.transport_plan(plan[1], chosen[plan[0]], layer=plan[0])),
        stages=_stages(summary),
        times=_times(summary),
        settings=json.dumps(_shown(summary["config"]), indent=1) if "config" in summary else None,
    )


def _sentence(cell: Cell) -> Markup:
    """As HTML; no line breaks between a number and its per cent."""
    return markup(cell).replace(" %", "\N{NO-BREAK SPACE}%")


def _shown(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those of other attacks."""
    attack = config.get("attack", {})
    own = {name: value for name, value in attack.items() if name == attack["name"] or not isinstance(value, Mapping)}
    return {**config, "attack": own} if own else dict(config)


def _detected(summary: Mapping[str, Any], verdict: Verdict) -> list[str]:
    """The verdict, and what was done about it, a sentence each."""
    clauses = (
        in_words(verdict),
        *map(trigger_finetuning_in_words, summary.get("trigger_finetuned") or ()),
        *map(unlearning_in_words, summary.get("unlearned_triggers") or ()),
    )
    return [f"{clause[:1].upper()}{clause[1:]}." for clause in clauses]


def _scored(verdict: Verdict) -> Table:
    """The score of every class, the highest first, and the evidence that it is made of."""
    order = sorted(range(len(verdict.scores)), key=lambda label: -(verdict.scores[label] or 0))
    columns = (verdict.scores, *verdict.evidence.values())
    rows = [(f"class {label}", *(formatted(values[label], ".2f") for values in columns)) for label in order]
    titles = (Column(kind.replace("_", " "), group="evidence") for kind in verdict.evidence)
    return Table(("class", "score", *titles), rows)


def _sweep(summary: Mapping[str, Any]) -> Table | None:
    """ACC / ASR of the networks at every setting of the grid."""
    if not summary.get("sweep"):
        return None
    first, axes = summary["sweep"][0], summary["axes"]
    networks = [name for name, value in first.items() if isinstance(value, Mapping)]
    rows = [
        (*(f"{row[name]:g}" for name in axes), *(rates(row[name]) for name in networks)) for row in summary["sweep"]
    ]
    return Table((*axes, *(f"{title(name)}: ACC / ASR %" for name in networks)), rows)


def _subject(summary: Mapping[str, Any]) -> list[str]:
    """The method and the network, as far as the summary says them."""
    parts = [summary["defense"].upper()] if "defense" in summary else []
    if model := summary.get("config", {}).get("model"):
        source = os.path.basename(os.path.normpath(model["checkpoint"] or "victim trained here"))
        width = f", width {model['width']}" if model["width"] else ""
        parts.append(f"{model['name']}{width} ({source})")
    return parts


def _along(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The settings whose product is the strength of the repair, and that product in words."""
    along = summary.get("along") or summary["axes"][:1]
    return {"along": along, "strength": summary.get("strength") or " ".join(along)}


def _varying(summary: Mapping[str, Any]) -> list[str]:
    """The settings that take several values in the sweep."""
    return [name for name in summary["axes"] if len({row[name] for row in summary["sweep"]}) > 1]


def _grid(summary: Mapping[str, Any]) -> EmbeddedFigure | None:
    """A heat map of two settings that vary, where no curve runs along both; None otherwise."""
    if not summary.get("sweep"):
        return None
    varying = _varying(summary)
    if len(varying) != 2 or {*varying} <= {*_along(summary)["along"]}:
        return None
    return html.embed(
        plots.grid(
            summary["sweep"],
            network=summary["swept"],
            axes=(varying[0], varying[1]),
            chosen=summary["choice"],
            oracle=summary.get("oracle"),
        )
    )


def _tradeoff(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """The curve along the strength, at the other settings as chosen, and these in words; None without measurements."""
    if not summary.get("sweep"):
        return None
    swept, along = summary["swept"], _along(summary)
    held = {name: summary["choice"][name] for name in summary["axes"] if name not in along["along"]}
    rows = [row for row in summary["sweep"] if held.items() <= row.items()]
    if not rows:  # a network that was returned unchanged
        return None
    networks = [swept, *(name for name, value in rows[0].items() if isinstance(value, Mapping) and name != swept)]
    figure = plots.tradeoff(
        rows,
        networks={name: title(name) for name in networks},
        chosen=summary["choice"],
        victim=next(iter(summary["metrics"].values())),
        **along,
    )
    return {"figure": html.embed(figure), "along": " ".join(along["along"]), "held": setting_in_words(held)}


def _selection(summary: Mapping[str, Any]) -> EmbeddedFigure | None:
    if not summary.get("selection"):
        return None
    return html.embed(plots.selection(summary["selection"], chosen=summary["choice"], **_along(summary)))


def _best(summary: Mapping[str, Any]) -> dict[str, str] | None:
    """The oracle's setting and its metrics in words."""
    if not summary.get("oracle"):
        return None
    oracle = summary["oracle"]
    return {"setting": setting_in_words(oracle)} | {
        metric: percent(oracle[summary["swept"]][metric]) for metric in ("acc", "asr")
    }


def _stages(summary: Mapping[str, Any]) -> Table | None:
    if not summary.get("stages"):
        return None
    columns = ("stage", "seconds", Column("this run", "left"), Column("hash of its values", "left"))
    rows = [
        (name, f"{stage['seconds']:.1f}", "reloaded" if stage["resumed"] else "computed", Code(stage["digest"][:12]))
        for name, stage in summary["stages"].items()
    ]
    return Table(columns, rows)


def _times(summary: Mapping[str, Any]) -> Table | None:
    """Where the seconds of this run went, a line for each stage and one for all; None where no stage says."""
    spent = {name: stage["spent"] for name, stage in summary.get("stages", {}).items() if stage.get("spent")}
    if not spent:
        return None
    spent["all stages"] = {part: sum(own.get(part, 0.0) for own in spent.values()) for part in _PARTS}
    rows = [(name, *(f"{own.get(part, 0.0):.2f}" for part in _PARTS)) for name, own in spent.items()]
    return Table(("seconds of this run", *_PARTS), rows, kinds=[*("" for _ in rows[1:]), "total"])
