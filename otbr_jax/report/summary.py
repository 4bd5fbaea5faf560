"""The results of a run in words and as a table, from `results.summarize` and from no method's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from otbr_jax.detectors.verdict import in_words, read_verdict
from otbr_jax.report.numbers import formatted, percent
from otbr_jax.report.table import Column, Table

TITLES = {
    "victim": "suspicious network",
    "unlearned": "after unlearning",
    "pruned": "after pruning",
    "fused": "after fusion",
    "distilled": "after distillation",
    "trigger_finetuned": "after fine-tuning on inverted triggers",
    "disarmed": "after unlearning",
    "reinitialized": "after re-initialisation",
    "finetuned": "after fine-tuning",
}
"""Titles of networks whose names alone do not say what was done."""


def title(network: str) -> str:
    """The title of a network of a summary's `metrics`."""
    return TITLES.get(network, network.replace("_", " "))


def titles(summary: Mapping[str, Any]) -> dict[str, str]:
    """The networks of a summary by name, and their titles; the last one is the repaired one."""
    *names, last = summary["metrics"]
    repaired = f"repaired ({title(last)})" if is_changed(summary) else "unchanged"
    return {name: title(name) for name in names} | {last: repaired}


def is_changed(summary: Mapping[str, Any]) -> bool:
    """Whether the repaired network differs from the suspicious one."""
    touched = [count for name, count in summary.get("neurons", {}).items() if name != "scored"]
    measured = [*summary.get("metrics", {}).values()]
    differ = bool(measured) and measured[0] != measured[-1]
    return any(touched) or bool(summary.get("trigger_finetuned")) or "neurons" not in summary or differ


def setting(choice: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a `choice` or an `oracle` by their names; nothing for a method that has no settings to choose."""
    return {name: value for name, value in choice.items() if isinstance(value, int | float)}


def setting_in_words(choice: Mapping[str, Any]) -> str:
    """The setting of a `choice` or an `oracle` in words: `gamma 0.1, lambda 0.5`."""
    return ", ".join(f"{name} {value:g}" for name, value in setting(choice).items())


def choice_in_words(summary: Mapping[str, Any]) -> str:
    """What was chosen, and by whom: `gamma 0.1, lambda 0.5, chosen by config`."""
    by = f"chosen by {summary['choice']['chosen_by']}"
    return ", ".join(part for part in (setting_in_words(summary["choice"]), by) if part)


def metrics_table(summary: Mapping[str, Any]) -> Table:
    """ACC, ASR, RA in per cent and DER of every network, and of the oracle's choice if there is one."""
    names = titles(summary)
    rows = [_row(name, summary["metrics"][network]) for network, name in names.items()]
    kinds = ["" for _ in rows[1:]] + ["final"]
    if oracle := summary.get("oracle"):
        rows.append(_row(f"oracle: {setting_in_words(oracle)} (needs the trigger)", oracle[summary["swept"]]))
        kinds.append("oracle")
    columns = (Column("network", "left"), *(Column(title) for title in ("ACC %", "ASR %", "RA %", "DER")))
    return Table(columns, rows, kinds=kinds)


def _row(name: str, measured: Mapping[str, float | None] | None) -> list[str]:
    metrics = measured or dict.fromkeys(("acc", "asr", "ra", "der"))
    return [name, *(percent(metrics[metric]) for metric in ("acc", "asr", "ra")), formatted(metrics["der"], ".3f")]


def summary_table(summary: Mapping[str, Any]) -> Table:
    """What is printed at the end of a run: the metrics; below them the verdict, what was done, and warnings."""
    notes = [in_words(read_verdict(summary["verdict"]))] if summary.get("verdict") else []
    notes.append("; ".join((choice_in_words(summary), summary["done"])))
    notes += map(trigger_finetuning_in_words, summary.get("trigger_finetuned") or ())
    notes += map(unlearning_in_words, summary.get("unlearned_triggers") or ())
    if summary.get("clean"):
        notes.append(f"used: {summary['clean']}")
    if oracle := summary.get("oracle"):
        names = ", ".join(setting(oracle))
        best = f"({names})" if len(setting(oracle)) > 1 else names
        notes.append(f"oracle: best {best} of the grid by test ACC and ASR, which a defender cannot know")
        if few := summary.get("screened"):
            notes.append(f"oracle: of the few settings that were best on {few['images']} of {few['of']} test images")
    table, measured = metrics_table(summary), any(any((each or {}).values()) for each in summary["metrics"].values())
    if not measured:
        notes.append("without test images ACC and ASR were not measured; --config.data.name brings some, later, too")
    rows, kinds = (table.rows, table.kinds) if measured else ((), ())
    return Table(table.columns, rows, kinds, notes=(*notes, *summary.get("warnings", ())))


def screening(summary: Mapping[str, Any]) -> str:
    """On how many images the settings of a grid were measured, a sentence; empty where all were on all."""
    few = summary.get("screened")
    if not few:
        return ""
    error = 100 * (0.25 / few["images"]) ** 0.5
    return (
        f"Settings in italics were measured on {few['images']} of the {few['of']} test images (standard error at "
        f"most {error:.1f} points), the best few by these and the chosen one on all."
    )


def trigger_finetuning_in_words(tuned: Mapping[str, Any]) -> str:
    """How far a network was fine-tuned on inverted triggers of a class, and the result, of `results.summarize`."""
    relearned = "".join(
        f", then the class was relearned, {100 * share:g} %" if share else ", the class was not relearned"
        for share in tuned["relearned"]
    )
    return (
        f"class {tuned['class']}: fine-tuned on inverted triggers, {100 * tuned['share']:g} % of the way{relearned}; "
        f"other triggers turn {percent(tuned['success'])} % of the images into it, "
        f"{100 * tuned['own']:.0f} % of its own images are predicted as it"
    )


def unlearning_in_words(unlearned: Mapping[str, Any]) -> str:
    """What unlearning did to the triggers of one family, of `results.summarize`."""
    before = ", ".join(f"{percent(share)} %" for share in unlearned["success"])
    return (
        f"{unlearned['family'].replace('_', ' ')} triggers of at most {unlearned['budget']:.3g} ({unlearned['unit']}): "
        f"success rate for class {unlearned['class']} before each unlearning round: {before}; of the first ones after "
        f"the last round: {percent(unlearned['left'][-1])} %"
    )
