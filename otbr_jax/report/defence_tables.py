"""The table of one set of victims, defended in several ways."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from otbr_jax.errors import InputError
from otbr_jax.report.cells import ATTACKS, oracle_title, repaired_network
from otbr_jax.report.numbers import NOTHING, formatted
from otbr_jax.report.rows import Row, field, is_flagged, percents, text
from otbr_jax.report.table import Table

DEFAULT, ORACLE = "disarm", "otbr"
"""The default; and the defence whose best setting, by the test set and the trigger, is shown too."""


def defences(rows: Sequence[Row]) -> list[Table]:
    """A line for each way to defend, a column for each attack; then medians: lost, left, seconds of a whole run."""
    rows = list({text(row, "cell"): row for row in rows}.values())
    attacks = [attack for attack in ATTACKS if attack in {text(row, "attack") for row in rows}]
    ways: dict[str, list[Row]] = {}
    for row in rows:
        ways.setdefault(_way(row), []).append(row)
    victims = {text(row, "attack"): (row, "metrics.victim") for row in rows}
    lines = [_line("no defence", victims, attacks, timed=False)]
    for name, own in ways.items():
        by_attack = {text(row, "attack"): row for row in own}
        if len(by_attack) != len(own):
            raise InputError(f"{own[0].place}: expected one row of {name!r} for each attack, found several")
        repaired = {attack: (row, f"metrics.{repaired_network(row)}") for attack, row in by_attack.items()}
        lines.append(_line(name, repaired, attacks))
        if name == ORACLE:
            best = {attack: (row, "oracle.fused") for attack, row in by_attack.items() if "oracle" in row.values}
            lines.append(_line(f"{ORACLE}, {oracle_title(own[0]).split(':')[0]}", best, attacks, timed=False))
    columns = ("defence", *attacks, "ACC lost, median", "ASR left, median", "seconds, median")
    return [Table(columns, lines)]


def _way(row: Row) -> str:
    return ", ".join(part for part in (text(row, "defense"), text(row, "variant")) if part)


def _line(
    name: str, networks: Mapping[str, tuple[Row, str]], attacks: Sequence[str], *, timed: bool = True
) -> list[str]:
    def cell(attack: str) -> str:
        if attack not in networks:
            return NOTHING
        row, path = networks[attack]
        return percents(row, path, *(("acc",) if attack == "none" else ("acc", "asr")))

    backdoored = [networks[attack] for attack in attacks if attack != "none" and attack in networks]
    before = [float(percents(row, "metrics.victim", "acc")) for row, _ in backdoored]
    lost = [acc - float(percents(row, path, "acc")) for acc, (row, path) in zip(before, backdoored, strict=True)]
    left = [float(percents(row, path, "asr")) for row, path in backdoored]
    seconds = [field(row, "seconds") for row, _ in backdoored]
    return [
        name,
        *map(cell, attacks),
        formatted(statistics.median(lost), "+.1f") if lost else NOTHING,
        formatted(statistics.median(left), ".1f") if left else NOTHING,
        formatted(statistics.median(seconds), ".0f") if timed and seconds else NOTHING,
    ]


def evidence(rows: Sequence[Row]) -> list[Table]:
    """The evidence of the default about the attacker's class, a line for each attack."""
    lines = []
    for row in {text(row, "cell"): row for row in rows}.values():
        if text(row, "defense") != DEFAULT or text(row, "attack") == "none":
            continue
        target, sizes = int(field(row, "config.attack.target")), field(row, "detection.trigger_size")
        smallest = min(sizes, key=lambda family: sizes[family][target] / statistics.median(sizes[family]))
        margin, bias = field(row, "detection.maximum_margin"), field(row, "detection.class_bias")
        lines.append(
            [
                text(row, "attack", among=ATTACKS),
                f"{sizes['patch'][target] / statistics.median(sizes['patch']):.2f}",
                f"{smallest.replace('_', ' ')}, {sizes[smallest][target] / statistics.median(sizes[smallest]):.2f}",
                f"{margin[target] / statistics.median(margin):.2f}",
                f"{100 * bias[target]:.0f}",
                f"{field(row, 'verdict.scores')[target]:.2f}",
                "yes" if is_flagged(row) and field(row, "verdict.suspect") == target else "no",
            ]
        )
    columns = (
        "attack",
        "patch: size over the median",
        "family with the smallest size",
        "maximum margin over the median",
        "class bias, %",
        "score",
        "flagged",
    )
    return [Table(columns, lines)]
