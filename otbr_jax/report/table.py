"""The summary table at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ROWS = {
    "victim": "suspicious network",
    "unlearned": "after random unlearning",
    "pruned": "after pruning",
    "fused": "repaired (after fusion)",
}

CORRELATIONS = ("pearson", "spearman", "overlap")


def percent(value: float | None) -> str:
    """0.958 -> `95.8`; None -> a hyphen."""
    return "-" if value is None else f"{100 * value:.1f}"


def summary_table(summary: Mapping[str, Any]) -> str:
    """ACC, ASR, RA in per cent and DER for every network of `results.summarize`, as fixed-width text."""
    lines = [f"{'':<26}{'ACC %':>8}{'ASR %':>8}{'RA %':>8}{'DER':>8}", "-" * 58]
    for name, title in ROWS.items():
        lines.append(_line(title, summary["metrics"][name]))
    choice, oracle = summary["choice"], summary["oracle"]
    if oracle:
        lines.append(_line(f"oracle ({oracle['gamma']:g}, {oracle['lambda']:g})", oracle["fused"]))
    lines.append("-" * 58)
    lines.append(
        f"gamma {choice['gamma']:g}, lambda {choice['lambda']:g}, chosen by {choice['chosen_by']}; "
        f"{summary['neurons']['pruned']} of {summary['neurons']['scored']} neurons pruned"
    )
    if oracle:
        lines.append("oracle: best (gamma, lambda) of the grid by test ACC and ASR, which a defender cannot know")
    if not summary["transport"]["converged"]:
        lines.append(
            f"transport did NOT converge: worst marginal error {summary['transport']['worst_marginal_error']:.2g}; "
            "raise otbr.fusion.transport.max_iterations or epsilon"
        )
    if unconverged := not_converged(summary["sweep"]):
        lines.append(f"transport did NOT converge in the grid at gamma {', '.join(f'{g:g}' for g in unconverged)}")
    return "\n".join(lines)


def not_converged(sweep: Sequence[Mapping[str, Any]]) -> list[float]:
    """The gammas of a grid, rows of `results.summarize`, whose transport did not converge."""
    return sorted({row["gamma"] for row in sweep if not row["converged"]})


def _line(title: str, row: Mapping[str, float | None] | None) -> str:
    row = row or {"acc": None, "asr": None, "ra": None, "der": None}
    cells = "".join(f"{percent(row[metric]):>8}" for metric in ("acc", "asr", "ra"))
    der = "-" if row["der"] is None else f"{row['der']:.3f}"
    return f"{title:<26}{cells}{der:>8}"


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
