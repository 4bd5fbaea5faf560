"""The leaderboard: every defence on the same networks, one line each, from the rows of a bench.

Medians are over networks, for each run of a defence (`repetition`); what is printed is the mean over its runs, and
their standard deviation behind it. Worst cases are over all networks and runs.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from otbr_jax.defenses.registry import DEFENSES
from otbr_jax.report.cells import own_stages, repaired_network, swept_network
from otbr_jax.report.numbers import NOTHING, formatted
from otbr_jax.report.rows import Row, field, text
from otbr_jax.report.table import Table

LEARNED = 0.1
"""Victims with a lower ASR did not learn their attack, and do not count as backdoored."""

LEFT = 0.15
"""The ASR from which a backdoor counts as left."""


class Measured(NamedTuple):
    """What one row says of one network; shares in [0, 1].

    Attributes:
      victim: which network.
      run: which run of the defence.
      lost: ACC before less ACC after.
      asr: after; None of a network without a backdoor.
      relearned: the mean ASR over the epochs of fine-tuning on a few poisoned images, and that of a network that never
        had the backdoor; None if the repair left the backdoor, or it was not measured.
      seconds: of processors on the defence's own steps, all cores together; None if it is not known.
      megabytes: the most that one of their programs takes; None if it is not known.
    """

    victim: tuple[str, ...]
    run: int
    lost: float
    asr: float | None
    relearned: tuple[float, float] | None
    seconds: float | None
    megabytes: float | None


def entries(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The lines of the leaderboard as plain JSON values: of each way to defend, and of its oracle where it has one.

    Order: by how many backdoors are left, then by what is lost. An oracle's line follows its defence's.
    """
    rows = list({text(row, "cell"): row for row in rows}.values())
    ways: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        ways.setdefault((text(row, "defense"), row.values.get("variant") or ""), []).append(row)
    pairs = []
    for (defense, variant), own in ways.items():
        source = DEFENSES[defense].source if defense in DEFENSES else ""
        shared = {"defence": defense, "variant": variant, "source": source, "data": _data(own[0])}
        entry = {**shared, "oracle": False, **_summary([_measured(row, repaired_network(row)) for row in own])}
        best = [_measured(row, swept_network(row), oracle=True) for row in own if row.values.get("oracle")]
        above = {**shared, "oracle": True, **_summary(best)} if best else None
        pairs.append((entry, above))
    pairs.sort(key=lambda pair: _order(pair[0]))
    return [entry for pair in pairs for entry in pair if entry is not None]


def lines(rows: Sequence[Row]) -> str:
    """The entries as JSON, one a line; numbers to six decimals."""
    return "".join(json.dumps(_rounded(entry)) + "\n" for entry in entries(rows))


def leaderboard(rows: Sequence[Row]) -> list[Table]:
    """The leaderboard, and the same networks one by one."""
    body = [
        [
            _way(entry),
            entry["data"],
            str(entry["networks"]),
            str(entry["runs"]),
            _points(entry["acc_lost"]),
            _worst(entry["acc_lost"]),
            _points(entry["asr"]),
            _worst(entry["asr"]),
            f"{entry['left'][0]} of {entry['left'][1]}",
            _points(entry["clean_lost"]),
            _worst(entry["clean_lost"]),
            _relearned(entry["relearning"]),
            formatted(entry["seconds"], ".0f"),
            formatted(entry["megabytes"], ".0f"),
        ]
        for entry in entries(rows)
    ]
    columns = (
        "defence",
        "data",
        "backdoored",
        "runs",
        "ACC lost, median",
        "worst",
        "ASR left, median",
        "worst",
        "over 15 %",
        "clean networks: ACC lost, median",
        "worst",
        "relearned: ASR (never had it)",
        "core seconds",
        "MB",
    )
    return [Table(columns, body)]


OURS, WITH_IMAGES, PAPERS = "disarm", "disarm_clean", ("otbr", "tsbd")
"""The default, the default with clean images, and the two methods that this project is about."""


def summary(rows: Sequence[Row]) -> list[Table]:
    """The leaderboard in a few lines: no defence, ours, the two papers', the best other defence, the best oracle."""
    all_entries = entries(rows)
    plain = {entry["defence"]: entry for entry in all_entries if not entry["oracle"] and not entry["variant"]}
    methods = (OURS, WITH_IMAGES, *PAPERS)
    others = [entry for entry in all_entries if not entry["oracle"] and entry["defence"] not in methods]
    oracles = sorted((entry for entry in all_entries if entry["oracle"]), key=_order)
    body = [["no defence", "-", "0.0", _before(rows), "-", "-"]]
    for name, entry in (
        *((name, plain.get(name)) for name in methods),
        ("best other", others[0] if others else None),
        ("best oracle", oracles[0] if oracles else None),
    ):
        if entry is not None:
            own = _way(entry)
            body.append(
                [
                    f"{name}: {own}" if name.startswith("best") else own,
                    entry["data"],
                    _points(entry["acc_lost"]),
                    _points(entry["asr"]),
                    f"{entry['left'][0]} of {entry['left'][1]}",
                    _points(entry["clean_lost"]),
                ]
            )
    columns = ("defence", "data", "ACC lost", "ASR left", "backdoors left", "clean network loses")
    return [Table(columns, body)]


def _before(rows: Sequence[Row]) -> str:
    """The median ASR of the victims before any repair."""
    asr = {_victim(row): field(row, "metrics.victim.asr") for row in rows}
    learned = [value for value in asr.values() if value is not None and value >= LEARNED]
    return formatted(100 * statistics.median(learned), ".1f") if learned else NOTHING


def by_network(rows: Sequence[Row]) -> list[Table]:
    """ACC / ASR of every network by every way to defend, means over runs; a line for each way."""
    rows = list({text(row, "cell"): row for row in rows}.values())
    victims: dict[tuple[str, ...], Row] = {}
    for row in rows:
        victims.setdefault(_victim(row), row)
    ways: dict[str, dict[tuple[str, ...], list[tuple[float, float | None]]]] = {}
    for row in rows:
        metrics = field(row, f"metrics.{repaired_network(row)}")
        name = _way({"defence": text(row, "defense"), "variant": row.values.get("variant"), "oracle": False})
        cells = ways.setdefault(name, {})
        cells.setdefault(_victim(row), []).append((metrics["acc"], metrics["asr"]))
    before: dict[tuple[str, ...], list[tuple[float, float | None]]] = {
        victim: [(field(row, "metrics.victim.acc"), field(row, "metrics.victim.asr"))]
        for victim, row in victims.items()
    }
    body = [
        [name, *(_rates(cells.get(victim, [])) for victim in victims)]
        for name, cells in {"no defence": before, **ways}.items()
    ]
    return [Table(("defence", *(f"{net}, {attack}, {seed}" for _, net, _, attack, seed in victims)), body)]


def _victim(row: Row) -> tuple[str, ...]:
    names = ("dataset", "network", "recipe", "attack")
    return (*(text(row, name) for name in names), f"seed {field(row, 'seed')}")


def _data(row: Row) -> str:
    """What a row's defence was given beside the network."""
    if not row.values.get("clean"):
        return "none"
    return f"{100 * field(row, 'config.clean.fraction'):g} % clean"


def _measured(row: Row, network: str, *, oracle: bool = False) -> Measured:
    after = field(row, f"oracle.{network}" if oracle else f"metrics.{network}")
    before, seconds = field(row, "metrics.victim"), field(row, "stage_cpu_seconds")
    own = own_stages(seconds)
    known = [seconds[name] for name in own]
    memory = [size for name, size in (row.values.get("stage_megabytes") or {}).items() if name in own and size]
    relearned, never = (_mean(row, f"relearning.{whose}poisoned.asr") for whose in ("", "never."))
    learned = before["asr"] is not None and before["asr"] >= LEARNED
    removed = learned and after["asr"] <= LEFT and not oracle
    rates = (relearned, never) if removed and relearned is not None and never is not None else None
    return Measured(
        _victim(row),
        int(row.values.get("repetition", 0)),
        before["acc"] - after["acc"],
        after["asr"] if learned else None,
        rates,
        None if None in known else sum(known),
        max(memory, default=None),
    )


def _mean(row: Row, path: str) -> float | None:
    """The mean of a curve behind its start: how far, and how soon; None where none was measured to its end."""
    curve = field(row, path) if row.values.get("relearning") else None
    return None if not curve or None in curve else statistics.fmean(curve[1:])


def _summary(measured: Sequence[Measured]) -> dict[str, Any]:
    attacked = [one for one in measured if one.asr is not None]
    clean = [one for one in measured if one.asr is None]
    relearned = [one.relearned for one in attacked if one.relearned is not None]
    memory = [one.megabytes for one in measured if one.megabytes is not None]
    seconds = [one.seconds for one in measured if one.seconds is not None]
    return {
        "networks": len({one.victim for one in attacked}),
        "runs": len({one.run for one in measured}),
        "acc_lost": _over_runs(attacked, lambda one: one.lost),
        "asr": _over_runs(attacked, lambda one: one.asr),
        "left": [sum(one.asr is not None and one.asr > LEFT for one in attacked), len(attacked)],
        "clean_lost": _over_runs(clean, lambda one: one.lost),
        "relearning": None
        if not relearned
        else {
            name: statistics.median(pair[place] for pair in relearned) for place, name in enumerate(("asr", "never"))
        },
        "seconds": statistics.median(seconds) if seconds else None,
        "megabytes": max(memory, default=None),
    }


def _over_runs(measured: Sequence[Measured], value: Callable[[Measured], Any]) -> dict[str, float | None] | None:
    """The mean and the standard deviation over runs of the median over networks, and the worst of all.

    Only runs that all networks have: medians over other networks would not be comparable.
    """
    if not measured:
        return None
    runs: dict[int, dict[tuple[str, ...], float]] = {}
    for one in measured:
        runs.setdefault(one.run, {})[one.victim] = value(one)
    most = max(map(len, runs.values()))
    medians = [statistics.median(by.values()) for by in runs.values() if len(by) == most]
    return {
        "median": statistics.fmean(medians),
        "spread": statistics.stdev(medians) if len(medians) > 1 else None,
        "worst": max(value(one) for one in measured),
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(own) for name, own in value.items()}
    return round(value, 6) if isinstance(value, float) else value


def _order(entry: Mapping[str, Any]) -> tuple[float, float]:
    left, of = entry["left"]
    return (left / of if of else 2.0, entry["acc_lost"]["median"] if entry["acc_lost"] else 0.0)


def _way(entry: Mapping[str, Any]) -> str:
    name = ", ".join(part for part in (entry["defence"], entry.get("variant") or "") if part)
    return f"{name}, oracle" if entry["oracle"] else name


def _points(values: Mapping[str, Any] | None) -> str:
    if values is None:
        return NOTHING
    spread = "" if values["spread"] is None else f" ± {100 * values['spread']:.1f}"
    return f"{100 * values['median']:.1f}{spread}"


def _worst(values: Mapping[str, Any] | None) -> str:
    return NOTHING if values is None else f"{100 * values['worst']:.1f}"


def _relearned(rates: Mapping[str, float] | None) -> str:
    return NOTHING if rates is None else f"{100 * rates['asr']:.0f} ({100 * rates['never']:.0f})"


def _rates(runs: Sequence[tuple[float, float | None]]) -> str:
    if not runs:
        return NOTHING
    acc = statistics.fmean(acc for acc, _ in runs)
    asr = [asr for _, asr in runs if asr is not None]
    return f"{100 * acc:.1f}" + (f" / {100 * statistics.fmean(asr):.1f}" if asr else "")
