"""Cells that several tables of results share, and the table they stand in."""

from __future__ import annotations

from collections.abc import Sequence

from otbr_jax.report.rows import NOTHING, Row, field, joined, number, percents

ORACLES = {"otbr": "oracle's gamma, lambda: ACC / ASR", "tsbd": "oracle's n, m: ACC / ASR"}
ATTACKS = ("none", "badnets", "blended", "sig", "lf", "ssba", "wanet", "input_aware", "trojan")


def repaired_cell(row: Row, network: str) -> str:
    """ACC / ASR / RA of a network, the first two bold."""
    path = f"metrics.{network}"
    return joined([bold(percents(row, path, "acc", "asr")), percents(row, path, "ra")])


def bold(cell: str) -> str:
    """In bold; nothing stays nothing."""
    return cell if cell == NOTHING else f"**{cell}**"


def oracle_cell(row: Row, network: str) -> str:
    """The oracle's setting, and ACC / ASR of the network at it."""
    if field(row, "oracle") is None:
        return NOTHING
    names = ("n", "m") if network == "finetuned" else ("gamma", "lambda")
    setting = ", ".join(number(row, f"oracle.{name}", "g") for name in names)
    return f"{setting}: {percents(row, f'oracle.{network}', 'acc', 'asr')}"


def markdown_table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; a line has a cell for each title."""
    rule = f"|{'---|' * len(titles)}"
    head, *body = (f"| {' | '.join(cells)} |" for cells in (titles, *lines))
    return "\n".join((head, rule, *body))
