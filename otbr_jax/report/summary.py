"""What a run found, in words and as a table, driven by what `results.summarize` says and by no method's name."""

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
    "trigger_finetuned": "after patching",
    "disarmed": "after its lessons",
    "reinitialized": "after re-initialisation",
    "finetuned": "after fine-tuning",
}
"""What networks are called whose names alone do not say it."""


def title(network: str) -> str:
    """What a network of a summary's `metrics` is called."""
    return TITLES.get(network, network.replace("_", " "))


def titles(summary: Mapping[str, Any]) -> dict[str, str]:
    """Names of the networks of a summary and what they are called; the last one is the repaired one."""
    *names, last = summary["metrics"]
    called = f"repaired ({title(last)})" if is_changed(summary) else "unchanged"
    return {name: title(name) for name in names} | {last: called}


def is_changed(summary: Mapping[str, Any]) -> bool:
    """Whether the repaired network is another than the suspicious one."""
    touched = [count for name, count in summary.get("neurons", {}).items() if name != "scored"]
    measured = [*summary.get("metrics", {}).values()]
    differ = bool(measured) and measured[0] != measured[-1]
    return any(touched) or bool(summary.get("trigger_finetuned")) or "neurons" not in summary or differ


def setting(choice: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a `choice` or an `oracle` by their names; nothing for a method that has no settings to choose."""
    return {name: value for name, value in choice.items() if isinstance(value, int | float)}


def words(choice: Mapping[str, Any]) -> str:
    """The setting of a `choice` or an `oracle` in words: `gamma 0.1, lambda 0.5`."""
    return ", ".join(f"{name} {value:g}" for name, value in setting(choice).items())


def chosen(summary: Mapping[str, Any]) -> str:
    """What was chosen and by whom: `gamma 0.1, lambda 0.5, chosen by config`."""
    by = f"chosen by {summary['choice']['chosen_by']}"
    return ", ".join(part for part in (words(summary["choice"]), by) if part)


def metrics_table(summary: Mapping[str, Any]) -> Table:
    """ACC, ASR, RA in per cent and DER of every network, and of the oracle's choice if there is one."""
    names = titles(summary)
    rows = [_row(name, summary["metrics"][network]) for network, name in names.items()]
    kinds = ["" for _ in rows[1:]] + ["final"]
    if oracle := summary.get("oracle"):
        rows.append(_row(f"oracle: {words(oracle)} (needs the trigger)", oracle[summary["swept"]]))
        kinds.append("oracle")
    columns = (Column("network", "left"), *(Column(title) for title in ("ACC %", "ASR %", "RA %", "DER")))
    return Table(columns, rows, kinds=kinds)


def _row(name: str, measured: Mapping[str, float | None] | None) -> list[str]:
    found = measured or dict.fromkeys(("acc", "asr", "ra", "der"))
    return [name, *(percent(found[metric]) for metric in ("acc", "asr", "ra")), formatted(found["der"], ".3f")]


def summary_table(summary: Mapping[str, Any]) -> Table:
    """What is printed at the end of a run: the metrics, and below what was chosen, done, found, used and warned of."""
    notes = ["; ".join((chosen(summary), summary["done"]))]
    if summary.get("verdict"):
        notes.append(in_words(read_verdict(summary["verdict"])))
    notes += map(patching, summary.get("trigger_finetuned") or ())
    notes += map(lesson, summary.get("unlearned_triggers") or ())
    if summary.get("clean"):
        notes.append(f"used: {summary['clean']}")
    if oracle := summary.get("oracle"):
        names = ", ".join(setting(oracle))
        found = f"({names})" if len(setting(oracle)) > 1 else names
        notes.append(f"oracle: best {found} of the grid by test ACC and ASR, which a defender cannot know")
        if few := summary.get("screened"):
            notes.append(f"oracle: of the few settings that were best on {few['images']} of {few['of']} test images")
    table, measured = metrics_table(summary), any(any((each or {}).values()) for each in summary["metrics"].values())
    if not measured:
        notes.append("without test images ACC and ASR were not measured; --config.data.name brings some, later, too")
    rows, kinds = (table.rows, table.kinds) if measured else ((), ())
    return Table(table.columns, rows, kinds, notes=(*notes, *summary.get("warnings", ())))


def screening(summary: Mapping[str, Any]) -> str:
    """On how many images the settings of a grid were measured, a sentence; empty where all were on all."""
    found = summary.get("screened")
    if not found:
        return ""
    error = 100 * (0.25 / found["images"]) ** 0.5
    return (
        f"Settings in italics were measured on {found['images']} of the {found['of']} test images (standard error at "
        f"most {error:.1f} points), the best few by these and the chosen one on all."
    )


def patching(patched: Mapping[str, Any]) -> str:
    """How far a network was patched for a class, and what that left of it, as `results.summarize` says."""
    recovered = "".join(
        f", then recovered, {100 * share:g} %" if share else ", not recovered" for share in patched["relearned"]
    )
    return (
        f"class {patched['class']} patched, {100 * patched['share']:g} % of the way{recovered}: triggers not taught "
        f"turn {percent(patched['success'])} % of the images into it, "
        f"{100 * patched['own']:.0f} % of its own images are taken for it"
    )


def lesson(taught: Mapping[str, Any]) -> str:
    """What was taught about one family of triggers, as `results.summarize` says."""
    before = ", ".join(f"{percent(share)} %" for share in taught["success"])
    return (
        f"{taught['family'].replace('_', ' ')} triggers of at most {taught['budget']:.3g} ({taught['unit']}): share of "
        f"pictures that they turned into class {taught['class']}, before each round of lessons: {before}; the first "
        f"ones turn {percent(taught['left'][-1])} % after the last"
    )
