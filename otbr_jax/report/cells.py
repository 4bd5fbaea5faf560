"""Cells that several tables of results share, read from rows whatever their defence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from otbr_jax.report.numbers import NOTHING
from otbr_jax.report.rows import Row, field, number, percents
from otbr_jax.report.table import Cell, Strong

ATTACKS = (
    *("none", "badnets", "blended", "sig", "lf", "ssba", "wanet", "input_aware", "trojan"),
    *("label_consistent", "ftrojan", "bpp", "ctrl", "lira"),
    *("adaptive_pictures", "adaptive_reach", "adaptive_channels"),
)

_NO_PART = ("victim", "clean", "attack", "evaluation", "changes")
_NOT_OURS = "relearning"


def own_stages(names: Iterable[str]) -> list[str]:
    """Those stages of a run that are the defence's own steps, and no measuring and no making of a victim."""
    return [name for name in names if name not in _NO_PART and not name.startswith(_NOT_OURS)]


def repaired_network(row: Row) -> str:
    """The name of the repaired network: the last that was measured; nothing if none was."""
    metrics = field(row, "metrics")
    return [*metrics][-1] if metrics else ""


def swept_network(row: Row) -> str:
    """The name of the network that the oracle's choice is about; older rows say it only there. Nothing without."""
    oracle = field(row, "oracle") or {}
    return next((name for name, value in oracle.items() if isinstance(value, Mapping)), "")


def axes(row: Row) -> list[str]:
    """Names of the settings that a defence chooses; older rows say them only in their choice."""
    return list(row.values.get("axes") or (name for name in field(row, "choice") if name != "chosen_by"))


def oracle_title(row: Row) -> str:
    """The title of a column of `oracle_cell`."""
    return f"oracle's {', '.join(axes(row))}: ACC / ASR"


def repaired_cell(row: Row, network: str) -> Cell:
    """ACC / ASR / RA of a network, the first two bold."""
    rates, accuracy = (percents(row, f"metrics.{network}", *metrics) for metrics in (("acc", "asr"), ("ra",)))
    if (rates, accuracy) == (NOTHING, NOTHING):
        return NOTHING
    return bold(rates), f" / {accuracy}"


def bold(cell: str) -> str:
    """In bold; nothing stays nothing."""
    return cell if cell == NOTHING else Strong(cell)


def oracle_cell(row: Row) -> str:
    """The oracle's setting, and ACC / ASR of the network at it."""
    if field(row, "oracle") is None:
        return NOTHING
    setting = ", ".join(number(row, f"oracle.{name}", "g") for name in axes(row))
    return f"{setting}: {percents(row, f'oracle.{swept_network(row)}', 'acc', 'asr')}"
