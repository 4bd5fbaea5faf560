"""The summary table at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from otbr_jax.report.verdict import verdict

TITLES = {
    "victim": "suspicious network",
    "unlearned": "after unlearning",
    "pruned": "after pruning",
    "fused": "after fusion",
    "distilled": "after distillation",
    "patched": "after patching",
    "reinitialized": "after re-initialisation",
    "finetuned": "after fine-tuning",
}
"""What networks are called."""


def networks(summary: Mapping[str, Any]) -> dict[str, str]:
    """Names of the networks of `results.summarize` and what they are called; the last one is the repaired one."""
    *names, last = summary["metrics"]
    return {name: TITLES[name] for name in names} | {last: f"repaired ({TITLES[last]})"}


CORRELATIONS = ("pearson", "spearman", "overlap")


def percent(value: float | None) -> str:
    """0.958 -> `95.8`; None -> a hyphen."""
    return "-" if value is None else f"{100 * value:.1f}"


def summary_table(summary: Mapping[str, Any]) -> str:
    """ACC, ASR, RA in per cent and DER for every network of `results.summarize`, as fixed-width text."""
    lines = [f"{'':<29}{'ACC %':>8}{'ASR %':>8}{'RA %':>8}{'DER':>8}", "-" * 61]
    rows = networks(summary)
    for name, title in rows.items():
        lines.append(_line(title, summary["metrics"][name]))
    choice, oracle, neurons = summary["choice"], summary["oracle"], summary["neurons"]
    if oracle:
        lines.append(_line(f"oracle ({setting(oracle, names=False)})", oracle[swept_network(oracle)]))
    lines.append("-" * 61)
    did = "pruned" if summary["defense"] == "otbr" else "reinitialized"
    lines.append(
        f"{setting(choice)}, chosen by {choice['chosen_by']}; {neurons[did]} of {neurons['scored']} neurons {did}"
    )
    if summary.get("judgement"):
        lines.append(verdict(summary["judgement"]))
    if summary.get("patched"):
        lines.extend(map(patching, summary["patched"]))
    if summary.get("clean"):
        lines.append(f"used: {summary['clean']}")
    if oracle:
        swept = setting(oracle, values=False)
        lines.append(f"oracle: best {swept} of the grid by test ACC and ASR, which a defender cannot know")
    return "\n".join(lines + warnings(summary))


def patching(patched: Mapping[str, Any]) -> str:
    """How far a network was patched for a class, and what that left of it, as `results.summarize` says."""
    recovered = "".join(
        f", then recovered, {100 * share:g} %" if share else ", not recovered" for share in patched["recovered"]
    )
    return (
        f"class {patched['class']} patched, {100 * patched['share']:g} % of the way{recovered}: triggers not taught "
        f"turn {percent(patched['success'])} % of the images into it, "
        f"{100 * patched['own']:.0f} % of its own images are taken for it"
    )


def swept_network(setting: Mapping[str, Any]) -> str:
    """The network that a row of the sweep, or the `oracle`, is about: the fused one, also where patching follows."""
    return next(name for name in ("finetuned", "distilled", "fused") if name in setting)


def setting(choice: Mapping[str, Any], *, names: bool = True, values: bool = True) -> str:
    """The settings of a `choice` or an `oracle` in words: `gamma 0.1, lambda 0.5`, or only names or values."""
    found = [name for name in ("gamma", "lambda", "n", "m") if name in choice]
    if not values:
        return f"({', '.join(found)})" if len(found) > 1 else found[0]
    return ", ".join(f"{name} {choice[name]:g}" if names else f"{choice[name]:g}" for name in found)


def warnings(summary: Mapping[str, Any]) -> list[str]:
    """What went less well than it should, a sentence each."""
    if summary["defense"] == "tsbd":
        found = summary["unlearning"]
        if found["reached_chance"]:
            return []
        return [
            f"clean unlearning did NOT reach chance: accuracy {percent(found['accuracy'])} % after {found['epochs']} "
            "epochs; raise tsbd.unlearning.max_epochs or its learning_rate"
        ]
    lines, transport = [], summary["transport"]
    if not transport["converged"]:
        lines.append(
            f"transport did NOT converge: worst marginal error {transport['worst_marginal_error']:.2g}; "
            "raise otbr.fusion.transport.max_iterations or epsilon"
        )
    if unconverged := not_converged(summary["sweep"]):
        lines.append(f"transport did NOT converge in the grid at gamma {', '.join(f'{g:g}' for g in unconverged)}")
    return lines


def not_converged(sweep: Sequence[Mapping[str, Any]]) -> list[float]:
    """The gammas of a grid, rows of `results.summarize`, whose transport did not converge."""
    return sorted({row["gamma"] for row in sweep if not row["converged"]})


def _line(title: str, row: Mapping[str, float | None] | None) -> str:
    row = row or {"acc": None, "asr": None, "ra": None, "der": None}
    cells = "".join(f"{percent(row[metric]):>8}" for metric in ("acc", "asr", "ra"))
    der = "-" if row["der"] is None else f"{row['der']:.3f}"
    return f"{title:<29}{cells}{der:>8}"


def correlation_table(summary: Sequence[Mapping[str, Any]]) -> str:
    """Correlations of weight changes with those of poison unlearning, of `correlation.summarize`, as text.

    Over all neurons and in the last layer: Pearson, Spearman, overlap of the top neurons.
    """
    lines = [
        f"{'':<14}{'victim':>14}{'random - poison':>30}{'clean - poison':>30}",
        f"{'attack':<14}{'ACC / ASR %':>14}" + 2 * f"{'all neurons':>15}{'last layer':>15}",
        "-" * 88,
    ]
    for study in summary:
        victim = f"{percent(study['victim']['acc'])} / {percent(study['victim']['asr'])}"
        cells = "".join(
            f"{' '.join(_short(study['with_poison'][kind][part][name]) for name in CORRELATIONS):>15}"
            for kind in ("random", "clean")
            for part in ("all", "last")
        )
        lines.append(f"{study['attack']:<14}{victim:>14}{cells}")
    top = summary[0]["top"]
    lines += ["-" * 88, f"each: Pearson, Spearman, overlap of the {100 * top:g} % of the neurons that changed most"]
    return "\n".join(lines)


def _short(value: float | None) -> str:
    """0.934 -> `.93`."""
    return "-" if value is None else f"{value:.2f}".replace("0.", ".", 1)
