"""Tables of repairs that choose their settings themselves: how far from an oracle, on backdoored and clean networks."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from otbr_jax.detectors.scores import roc
from otbr_jax.errors import InputError
from otbr_jax.report.cells import ATTACKS, oracle_cell, oracle_title, repaired_cell, repaired_network, swept_network
from otbr_jax.report.numbers import NOTHING, formatted, share
from otbr_jax.report.rows import Row, field, grouped, integer, is_flagged, joined, number, percents, text
from otbr_jax.report.table import Cell, Table

PUBLISHED = "published: gamma 0.1, lambda 0.5"


def tsbd(rows: Sequence[Row]) -> list[Table]:
    """A line for each victim and scheme: what was chosen, what the oracle would choose, how many points lie between."""
    rows = list({(text(row, "cell"), scheme(row)): row for row in rows}.values())
    lines = []
    for row in rows:
        chosen = ", ".join(number(row, f"choice.{name}", "g") for name in ("n", "m"))
        chosen = "unchanged" if field(row, "choice.n") == 0 else chosen
        lines.append(
            [
                f"{text(row, 'dataset')}, {text(row, 'network')}",
                f"{text(row, 'attack', among=ATTACKS)}, seed {integer(row, 'seed')}",
                percents(row, "metrics.victim", "acc", "asr"),
                scheme(row),
                chosen,
                percents(row, "metrics.reinitialized", "acc", "asr"),
                repaired_cell(row, repaired_network(row)),
                oracle_cell(row),
                joined([formatted(points, "+.1f") for points in regret(row)]),
            ]
        )
    titles = ("victim", "attack", "victim ACC / ASR", "zeroed", "n, m", "re-initialised", "repaired ACC / ASR / RA")
    schemes = dict.fromkeys(scheme(row) for row in rows)
    regrets = [f"Zeroed {name}: {_regrets([row for row in rows if scheme(row) == name])}" for name in schemes]
    return [Table((*titles, oracle_title(rows[0]), "regret, points: ACC / ASR"), lines, notes=regrets)]


def otbr_plus(rows: Sequence[Row]) -> list[Table]:
    """A line for each victim: its suspect and what was chosen without data, against the oracle's choice."""
    rows = list({text(row, "cell"): row for row in rows}.values())
    lines = []
    for row in rows:
        choice = "unchanged"
        if is_flagged(row):
            choice = ", ".join(number(row, f"choice.{name}", "g") for name in ("gamma", "lambda"))
        attack, recipe = text(row, "attack", among=ATTACKS), text(row, "recipe")
        poisoned = recipe.partition(", ")[2]
        lines.append(
            [
                f"{text(row, 'dataset')}, {text(row, 'network')}",
                ", ".join(part for part in (attack, f"seed {integer(row, 'seed')}", poisoned) if part),
                percents(row, "metrics.victim", "acc", "asr"),
                f"{integer(row, 'verdict.suspect')}: {highest_score(row):.2f}",
                choice,
                percents(row, "metrics.fused", "acc", "asr"),
                repaired_cell(row, repaired_network(row)),
                oracle_cell(row),
                joined([formatted(points, "+.1f") for points in regret(row)]),
            ]
        )
    titles = ("victim", "attack", "victim ACC / ASR", "suspect: score", "gamma, lambda", "fused", "repaired")
    columns = (*titles, oracle_title(rows[0]), "regret, points: ACC / ASR")
    return [Table(columns, lines, notes=(_regrets(rows), _detection(rows))), _frontier(rows)]


CALIBRATION_SEEDS = 10
"""Clean networks with seeds from here on set the threshold of `configs/disarm.py`."""


def disarm(rows: Sequence[Row]) -> list[Table]:
    """A line for each victim that is reported, then medians, worst cases and how the calibration's networks score."""
    rows = list({text(row, "cell"): row for row in rows}.values())
    set_on = [row for row in rows if text(row, "attack") == "none" and field(row, "seed") >= CALIBRATION_SEEDS]
    reported = [row for row in rows if row not in set_on]
    lines = [
        [
            f"{text(row, 'dataset')}, {text(row, 'network')}",
            ", ".join((text(row, "attack", among=ATTACKS), f"seed {integer(row, 'seed')}", *_how(row))),
            percents(row, "metrics.victim", "acc", "asr"),
            f"{integer(row, 'verdict.suspect')}: {highest_score(row):.2f}",
            text(row, "detection.family").replace("_", " ") if is_flagged(row) else "unchanged",
            repaired_cell(row, repaired_network(row)),
            " + ".join(number(row, f"stage_seconds.{stage}", ".0f") for stage in ("minimal", "disarmed")),
        ]
        for row in reported
    ]
    columns = (
        "victim",
        "attack",
        "victim ACC / ASR",
        "suspect: score",
        "flagged by",
        "repaired ACC / ASR / RA",
        "seconds: inversion + unlearning",
    )
    return [Table(columns, lines, notes=(_lost(reported), _scored(set_on, reported)))]


def spread(rows: Sequence[Row]) -> list[Table]:
    """A line for each network: the score of the attacker's class by each seed of the inversion, and the verdicts."""
    lines: list[list[Cell]] = []
    names = ("dataset", "network", "attack", "seed")
    for row in {tuple(str(field(row, name)) for name in names): row for row in rows}.values():
        attacked = text(row, "attack", among=ATTACKS) != "none"
        values = field(row, "target" if attacked else "highest")
        count = f"{integer(row, 'right' if attacked else 'flagged')} of {integer(row, 'searches')}"
        lines.append(
            [
                f"{text(row, 'dataset')}, {text(row, 'network')}",
                f"{text(row, 'attack')}, seed {integer(row, 'seed')}",
                ", ".join(f"{value:.1f}" for value in sorted(values)),
                f"{count} right" if attacked else f"{count} flagged",
            ]
        )
    return [Table(("network", "attack", "score, one for each inversion, ascending", "verdicts"), lines)]


def _how(row: Row) -> list[str]:
    """What is particular about a victim: the parts of its recipe's name behind the first."""
    return text(row, "recipe").split(", ")[1:]


def _lost(rows: Sequence[Row]) -> str:
    """What repairs cost and left, medians and worst cases."""
    attacked = [row for row in rows if text(row, "attack") != "none"]
    backdoored = [row for row in attacked if _learned(row)]

    def points(row: Row, metric: str) -> float:
        return float(percents(row, f"metrics.{repaired_network(row)}", metric))

    lost = {row.place: float(percents(row, "metrics.victim", "acc")) - points(row, "acc") for row in rows}
    parts = []
    if backdoored:
        own = [lost[row.place] for row in backdoored]
        left = [points(row, "asr") for row in backdoored]
        parts.append(
            f"{len(own)} backdoored networks: points of ACC lost, median {statistics.median(own):+.1f}, worst "
            f"{max(own):+.1f}; ASR left, median {statistics.median(left):.1f}, worst {max(left):.1f}; "
            f"{share(sum(rest < 15 for rest in left), len(left))} under fifteen per cent"
        )
    if unlearned := len(attacked) - len(backdoored):
        parts.append(f"{unlearned} that did not learn the attack, below ten per cent ASR, do not count")
    if clean := [lost[row.place] for row in rows if row not in attacked]:
        parts.append(f"{len(clean)} clean networks lost at most {max(clean):+.1f}")
    return "; ".join(parts) + "."


def _learned(row: Row) -> bool:
    """Whether a victim has the backdoor that it was trained for."""
    return float(percents(row, "metrics.victim", "asr")) >= 10


def _scored(clean: Sequence[Row], reported: Sequence[Row]) -> str:
    """How many are detected, and the scores of the networks on which the threshold is set."""
    backdoored = [row for row in reported if text(row, "attack") != "none" and _learned(row)]
    others = [row for row in reported if text(row, "attack") == "none"]
    right = sum(is_flagged(row) and field(row, "verdict.suspect") == 0 for row in backdoored)
    false_alarms = sum(is_flagged(row) for row in others)
    shares = [
        f"{share(count, len(group))} {what}"
        for count, group, what in (
            (right, backdoored, "backdoored networks are flagged for the attacker's class, 0"),
            (false_alarms, others, "clean ones are flagged"),
        )
        if group
    ]
    sentences = f"{'; '.join(shares)}. " if shares else ""
    if clean:
        scores = sorted(highest_score(row) for row in clean)
        threshold = field((reported or clean)[-1], "verdict.threshold")  # of the latest state
        over = sum(score >= threshold for score in scores)
        sentences += (
            f"{len(scores)} clean networks, on which the threshold {threshold:g} is set and which are not in the "
            f"table, score {scores[0]:.2f} to {scores[-1]:.2f}, median {statistics.median(scores):.2f}; "
            f"{share(over, len(scores))} reach it. "
        )
    return f"{sentences}In brackets: ninety-five per cent intervals, after Wilson."


def relearned(rows: Sequence[Row]) -> list[Table]:
    """A line for each network that was fine-tuned on inverted triggers and relearned; notes as in `otbr_plus`."""
    rows = list({text(row, "cell"): row for row in rows}.values())
    lines = [
        [
            f"{text(row, 'dataset')}, {text(row, 'network')}",
            f"{text(row, 'attack', among=ATTACKS)}, seed {integer(row, 'seed')}",
            percents(row, "metrics.victim", "acc", "asr"),
            repaired_cell(row, repaired_network(row)),
        ]
        for row in rows
        if is_flagged(row)
    ]
    titles = ("victim", "attack", "victim ACC / ASR", "relearned ACC / ASR / RA")
    return [Table(titles, lines, notes=(_regrets(rows),)), _frontier(rows)]


def variants(rows: Sequence[Row]) -> list[Table]:
    """A line for each variant: as published, and the best of its grid in hindsight, against the published one's."""
    latest_rows = list({text(row, "cell"): row for row in rows}.values())
    attacked = grouped([row for row in latest_rows if field(row, "oracle") is not None], "variant")
    clean = grouped([row for row in latest_rows if field(row, "oracle") is None], "variant")
    published = {_victim(row): row for row in latest_rows if text(row, "variant") == "published"}

    def of(row: Row, place: str, metric: str) -> float:
        network = repaired_network(row) if place == "metrics" else swept_network(row)
        return float(field(row, f"{place}.{network}.{metric}"))

    lines = []
    for (variant,), backdoored in attacked.items():
        gains = [
            round(of(row, "oracle", "der"), 3) - round(of(published[_victim(row)], "oracle", "der"), 3)
            for row in backdoored
        ]
        lost = [
            100 * (field(row, "metrics.victim.acc") - of(row, "metrics", "acc")) for row in clean.get((variant,), ())
        ]
        lines.append(
            [
                variant,
                f"{len(backdoored)} + {len(lost)}",
                *(
                    _middle_and_worst([of(row, place, metric) for row in backdoored], metric)
                    for place in ("metrics", "oracle")
                    for metric in ("acc", "asr")
                ),
                f"{statistics.median(gains):+.3f} / {min(gains):+.3f}",
                f"{statistics.median(lost):+.1f} / {max(lost):+.1f}" if lost else NOTHING,
            ]
        )
    titles = ("variant", "backdoored + clean", "gamma 0.1, lambda 0.5: ACC", "ASR", "oracle: ACC", "ASR")
    return [Table((*titles, "DER of the oracle against published", "ACC lost by clean ones"), lines)]


def _victim(row: Row) -> tuple[str, ...]:
    """What tells the victims of one bench apart."""
    names = ("dataset", "network", "recipe", "attack")
    return *(text(row, name) for name in names), str(integer(row, "seed"))


def _middle_and_worst(values: Sequence[float], metric: str) -> str:
    worst = min(values) if metric == "acc" else max(values)
    return f"{100 * statistics.median(values):.1f} / {100 * worst:.1f}"


def highest_score(row: Row) -> float:
    """The highest anomaly score of any class."""
    return max(field(row, "verdict.scores"))


def _detection(rows: Sequence[Row]) -> str:
    backdoored = [field(row, "oracle") is not None for row in rows]
    curve = roc(jnp.array([highest_score(row) for row in rows]), jnp.array(backdoored))
    flagged = [is_flagged(row) for row in rows]
    detected = sum(a and b for a, b in zip(flagged, backdoored, strict=True))
    right = sum(
        field(row, "verdict.scores")[field(row, "config.attack.target")] >= field(row, "verdict.threshold")
        for row, attacked in zip(rows, backdoored, strict=True)
        if attacked
    )
    false_alarms, attacked = sum(flagged) - detected, sum(backdoored)
    return (
        f"The anomaly score as a detector: AUC {float(curve.auc):.3f}; at the threshold {detected} of {attacked} "
        f"backdoored networks are flagged, {right} for the attacker's class, and {false_alarms} of "
        f"{len(rows) - attacked} clean ones."
    )


def _frontier(rows: Sequence[Row]) -> Table:
    """Medians and worst cases over the backdoored networks, and what clean ones lose, of several ways to repair."""
    backdoored = [row for row in rows if field(row, "oracle") is not None]
    clean = [row for row in rows if field(row, "oracle") is None]

    ways: Mapping[str, Callable[[Row], Mapping[str, float | None] | None]] = {
        "no defence": lambda row: field(row, "metrics.victim"),
        PUBLISHED: _published,
        "chosen without data, fused": lambda row: field(row, "metrics.fused"),
        "fine-tuned on inverted triggers": lambda row: field(row, "metrics.trigger_finetuned"),
        "oracle's gamma, lambda": lambda row: (field(row, "oracle") or {}).get("fused"),
    }
    lines = []
    for name, way in ways.items():
        cells = [name]
        for metric, worst in (("acc", min), ("asr", max)):
            values = [100 * rates[metric] for row in backdoored if (rates := way(row)) and rates[metric] is not None]  # type: ignore[operator]
            cells += [f"{statistics.median(values):.1f}", f"{worst(values):.1f}"]
        lost = [100 * (field(row, "metrics.victim.acc") - rates["acc"]) for row in clean if (rates := way(row))]
        cells += [f"{statistics.median(lost):+.1f}", f"{max(lost):+.1f}"] if lost else [NOTHING, NOTHING]
        lines.append(cells)
    titles = ("in per cent", "ACC, median", "ACC, worst", "ASR, median", "ASR, worst")
    return Table((*titles, "ACC lost by clean ones, median", "worst"), lines)


def _published(row: Row) -> Mapping[str, Any]:
    """The rates at the published setting, as the row's sweep has them."""
    for setting in field(row, "sweep"):
        if (setting["gamma"], setting["lambda"]) == (0.1, 0.5):
            return setting["fused"]
    raise InputError(f"{row.place}: expected gamma 0.1, lambda 0.5 in the sweep, found others")


def scheme(row: Row) -> str:
    """What of the neurons was set to zero; rows without the setting are older than it, and about weights."""
    return text(row, "config.tsbd.scheme") if "scheme" in (field(row, "config.tsbd") or {}) else "weights"


def regret(row: Row) -> tuple[float | None, float | None]:
    """Points of ACC and of ASR that the oracle's choice is better by; of a clean network, ACC against the network."""
    acc, asr = (_points(row, f"metrics.{repaired_network(row)}", metric) for metric in ("acc", "asr"))
    if field(row, "oracle") is None:
        before = _points(row, "metrics.victim", "acc")
        return (None if None in (before, acc) else before - acc), None  # type: ignore[operator]
    best, least = (_points(row, f"oracle.{swept_network(row)}", metric) for metric in ("acc", "asr"))
    return (
        None if acc is None or best is None else best - acc,
        None if asr is None or least is None else asr - least,
    )


def _points(row: Row, path: str, metric: str) -> float | None:
    """In per cent as it is printed, so that a reader who subtracts finds the same."""
    printed = percents(row, path, metric)
    return None if printed == NOTHING else float(printed)


def _regrets(rows: Sequence[Row]) -> str:
    """Medians and worst cases, of backdoored and of clean networks."""
    clean = [regret(row)[0] for row in rows if field(row, "oracle") is None]
    backdoored = [regret(row) for row in rows if field(row, "oracle") is not None]
    parts = []
    for title, points in (
        (f"{len(backdoored)} backdoored networks, regret in points of ACC", [acc for acc, _ in backdoored]),
        ("of ASR", [asr for _, asr in backdoored]),
        (f"{len(clean)} clean networks, points of ACC lost", clean),
    ):
        known = [each for each in points if each is not None]
        if known:
            parts.append(f"{title}: median {statistics.median(known):+.1f}, worst {max(known):+.1f}")
    return "; ".join(parts) + "."
