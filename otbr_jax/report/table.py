"""The summary table at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ROWS = {
    "victim": "suspicious network",
    "unlearned": "after random unlearning",
    "pruned": "after pruning",
    "fused": "repaired (after fusion)",
}


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
        lines.append(_line(f"oracle (gamma {oracle['gamma']:g})", oracle["fused"]))
    lines.append("-" * 58)
    lines.append(
        f"gamma {choice['gamma']:g}, lambda {choice['lambda']:g}, chosen by {choice['chosen_by']}; "
        f"{summary['neurons']['pruned']} of {summary['neurons']['scored']} neurons pruned"
    )
    if oracle:
        lines.append("oracle: best gamma of the sweep by test ACC and ASR, which a defender cannot know")
    if not summary["transport"]["converged"]:
        lines.append(
            f"transport did NOT converge: worst marginal error {summary['transport']['worst_marginal_error']:.2g}; "
            "raise otbr.fusion.transport.max_iterations or epsilon"
        )
    return "\n".join(lines)


def _line(title: str, row: Mapping[str, float | None] | None) -> str:
    row = row or {"acc": None, "asr": None, "ra": None, "der": None}
    cells = "".join(f"{percent(row[metric]):>8}" for metric in ("acc", "asr", "ra"))
    der = "-" if row["der"] is None else f"{row['der']:.3f}"
    return f"{title:<26}{cells}{der:>8}"
