"""README's tables in Markdown, from the rows of `results/`.

Every number stands in a row, or is the difference or the ratio of two that are printed beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from otbr_jax.errors import InputError
from otbr_jax.report import (
    ablation_page,
    choice_tables,
    defence_tables,
    detector_tables,
    growth,
    leaderboard,
    machine_tables,
    time_tables,
)
from otbr_jax.report.activeness_page import SCORES
from otbr_jax.report.cells import ATTACKS, bold, oracle_cell, oracle_title, repaired_cell, repaired_network
from otbr_jax.report.correlation_page import CORRELATIONS
from otbr_jax.report.numbers import NOTHING
from otbr_jax.report.rows import Row, field, grouped, integer, joined, latest, number, percents, text
from otbr_jax.report.table import Cell, Code, Strong, Table

RECIPES = ("published", "fast")


def markdown(name: str, rows: Sequence[Row]) -> str:
    """The table of that name, without a line break at its end.

    Raises:
      InputError: if there is no table of that name, or a row lacks a field or holds one of the wrong kind.
    """
    if name not in TABLES:
        raise InputError(f"table: expected one of {[*TABLES]}, found {name!r}")
    return "\n\n".join(table.markdown() for table in TABLES[name](rows))


def _digits(rows: Sequence[Row]) -> list[Table]:
    lines = [
        [
            str(integer(row, "seed")),
            percents(row, "metrics.victim", "acc", "asr"),
            percents(row, "metrics.pruned", "acc", "asr"),
            repaired_cell(row, repaired_network(row)),
            oracle_cell(row),
        ]
        for row in rows
    ]
    titles = ("seed", "victim ACC / ASR", "pruned only", "repaired ACC / ASR / RA", oracle_title(rows[0]))
    return [Table(titles, lines)]


def _ablation(rows: Sequence[Row]) -> list[Table]:
    """A line for each variant of each comparison, a column for each data set and attack; and a table of overlaps."""
    kinds = ("attack", "poisoning_ratio", "clean_fraction", "choice", "scheme", "finetuning")
    for row in rows:
        for name in ("compared", "curve", "tac_overlap", "n"):
            field(row, name)
    rows = list({tuple(str(field(row, name)) for name in ("dataset", "network", *kinds)): row for row in rows}.values())
    groups = {", ".join(key): [row.values for row in own] for key, own in grouped(rows, "dataset", "attack").items()}
    return [ablation_page.comparison_table(groups), ablation_page.overlap_table(groups)]


def _activeness(rows: Sequence[Row]) -> list[Table]:
    """A line for each victim with its scores, and one with the AUC of each score."""
    lines: list[list[Cell]] = []
    for row in rows:
        if field(row, "attack") == "all":
            kinds = f"{integer(row, 'backdoored')} backdoored, {integer(row, 'clean')} clean: AUC"
            lines.append([Strong(kinds), NOTHING, *(number(row, f"auc.{name}", ".3g") for name in SCORES)])
        else:
            name = f"{text(row, 'attack', among=ATTACKS)}, seed {integer(row, 'seed')}"
            scores = [number(row, f"scores.{score}", ".3g") for score in SCORES]
            lines.append([name, percents(row, "victim", "acc", "asr"), *scores])
    return [Table(("victim", "ACC / ASR", *SCORES.values()), lines)]


def _torch_victims(rows: Sequence[Row]) -> list[Table]:
    lines = [
        [
            Code(text(row, "file")),
            text(row, "defense"),
            percents(row, "metrics.victim", "acc", "asr", "ra"),
            bold(percents(row, f"metrics.{repaired_network(row)}", "acc", "asr", "ra")),
            oracle_cell(row) if "oracle" in row.values else NOTHING,
            number(row, "seconds", ".0f"),
        ]
        for row in latest(rows, "file", "defense")
    ]
    titles = ("file", "defence", "before: ACC / ASR / RA", "repaired", oracle_title(rows[0]), "seconds")
    return [Table(titles, lines)]


_FAULTS = {"kills": "SIGKILL", "terms": "SIGTERM", "ints": "SIGINT", "disks": "full disk", "bad input": "bad input"}


def _faults(rows: Sequence[Row]) -> list[Table]:
    """A line for each program and kind of fault, the latest ones."""
    lines: list[list[Cell]] = []
    for row in latest(rows, "program", "fault"):
        kind = _FAULTS[text(row, "fault", among=_FAULTS)]
        if "runs" in row.values:
            ends = [f"{integer(row, 'same_bits')} of {integer(row, 'runs')}"]
            ends += [str(integer(row, name)) for name in ("tracebacks", "other_statuses", "half_written")]
            lines.append([text(row, "program"), kind, str(integer(row, "faults")), *ends])
        else:
            ends = [f"{integer(row, 'in_one_line')} of {integer(row, 'faults')}", *[NOTHING] * 3]
            lines.append([text(row, "program"), kind, str(integer(row, "faults")), *ends])
    titles = ("program", "fault", "times", "as it should be", "tracebacks", "other statuses", "half-written")
    return [Table(titles, lines)]


def _bench(rows: Sequence[Row]) -> list[Table]:
    """A table for each data set, network and recipe, its defences side by side."""
    groups = grouped(latest(rows, "cell"), "dataset", "network", "recipe")
    return [_bench_group(groups[group]) for group in sorted(groups)]


def _bench_group(rows: Sequence[Row]) -> Table:
    lines, seeds = _by_attack(rows)
    clean = {seed: own[0] for (attack, seed), own in lines.items() if attack == "none"}
    titles = ["attack", "victim ACC / ASR", "ACC against clean, points", "trigger PSNR / SSIM"]
    table: list[list[Cell]] = [
        [
            _attack_name(attack, seed, seeds),
            percents(own[0], "metrics.victim", "acc", "asr"),
            NOTHING if attack == "none" else _difference(own[0], clean.get(seed), "metrics.victim", "acc"),
            joined([number(own[0], "trigger.psnr", ".1f"), number(own[0], "trigger.ssim", ".3f")]),
        ]
        for (attack, seed), own in lines.items()
    ]
    for (defense,), repaired in sorted(grouped(rows, "defense").items()):
        oracle = next((oracle_title(row) for row in repaired if field(row, "oracle") is not None), None)
        titles += [f"{defense.upper()}: ACC / ASR / RA", "DER", *([oracle] if oracle else [])]
        for cells, own in zip(table, lines.values(), strict=True):
            repairs = [_defense_cells(row, oracle) for row in own if text(row, "defense") == defense]
            cells += repairs[0] if repairs else [NOTHING] * (3 if oracle else 2)
    data = "; ".join(dict.fromkeys(text(row, "data") for row in rows))
    name = Strong(f"{text(rows[0], 'dataset')}, {text(rows[0], 'network')}")
    return Table(titles, table, caption=(name, f", recipe {text(rows[0], 'recipe')}: {data}."))


def _defense_cells(row: Row, oracle: str | None) -> list[Cell]:
    network = repaired_network(row)
    cells = [repaired_cell(row, network), number(row, f"metrics.{network}.der", ".3f")]
    return [*cells, oracle_cell(row)] if oracle else cells


def _recipes(rows: Sequence[Row]) -> list[Table]:
    """A line for each data set, network and attack, the recipes of training side by side."""
    table = []
    groups = grouped(latest(rows, "cell", "recipe"), "dataset", "network")
    for dataset, network in sorted(groups):
        lines, seeds = _by_attack(groups[dataset, network])
        for (attack, seed), own in lines.items():
            cells = [dataset, network, _attack_name(attack, seed, seeds)]
            for recipe in RECIPES:
                trained = [row for row in own if text(row, "recipe", among=RECIPES) == recipe]
                cells += _training_cells(trained[0]) if trained else [NOTHING] * 3
            table.append(cells)
    titles = [title for recipe in RECIPES for title in (f"{recipe}: epochs", "seconds", "ACC / ASR")]
    return [Table(("data set", "network", "attack", *titles), table)]


def _training_cells(row: Row) -> list[str]:
    return [
        number(row, "training.epochs", "g"),
        number(row, "training.seconds", ".0f"),
        percents(row, "metrics.victim", "acc", "asr"),
    ]


def _correlation(rows: Sequence[Row]) -> list[Table]:
    """A line for each victim: Pearson, Spearman and overlap of the top neurons with those of poison unlearning."""
    parts = [(kind, part) for kind in ("random", "clean") for part in ("all", "last")]
    lines = [
        [
            f"{text(row, 'dataset')}, {text(row, 'network')}" + ("" if field(row, "file") is None else ", a file"),
            text(row, "attack", among=ATTACKS),
            percents(row, "victim", "acc", "asr"),
            *(
                joined([number(row, f"with_poison.{kind}.{part}.{name}", ".2f") for name in CORRELATIONS])
                for kind, part in parts
            ),
        ]
        for row in latest(rows, "dataset", "network", "attack")
    ]
    where = {"all": "all neurons", "last": "last layer"}
    titles = [f"{kind}, {where[part]}" for kind, part in parts]
    return [Table(("victim", "attack", "ACC / ASR", *titles), lines)]


def _by_attack(rows: Sequence[Row]) -> tuple[dict[tuple[str, int], list[Row]], bool]:
    """Rows by attack and seed in a table's order, and whether there are several seeds.

    Raises InputError if two rows of one recipe, attack and seed are not about one victim: those cannot be compared.
    """
    lines: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        lines.setdefault((text(row, "attack", among=ATTACKS), integer(row, "seed")), []).append(row)
    for own in lines.values():
        for first, *others in grouped(own, "recipe").values():
            for other in others:
                victims = [percents(row, "metrics.victim", "acc", "asr") for row in (first, other)]
                if victims[0] != victims[1]:
                    raise InputError(
                        f"{other.place}: expected the victim of {first.place}, ACC / ASR {victims[0]}, "
                        f"found another, {victims[1]}"
                    )
    order = sorted(lines, key=lambda line: (ATTACKS.index(line[0]), line[1]))
    return {line: lines[line] for line in order}, len({seed for _, seed in lines}) > 1


def _attack_name(attack: str, seed: int, seeds: bool) -> str:
    return f"{attack}, seed {seed}" if seeds else attack


def _difference(row: Row, other: Row | None, path: str, metric: str) -> str:
    """In points, of the values as they are printed, so that a reader finds the same."""
    values = NOTHING if other is None else [percents(each, path, metric) for each in (row, other)]
    return NOTHING if NOTHING in values else f"{float(values[0]) - float(values[1]):+.1f}"


TABLES: Mapping[str, Callable[[Sequence[Row]], list[Table]]] = {
    "digits": _digits,
    "torch_victims": _torch_victims,
    "loops": time_tables.loops,
    "unlearning_step": time_tables.unlearning_step,
    "bench_cpu": _bench,
    "bench_paper": _bench,
    "bench_tsbd": choice_tables.tsbd,
    "bench_otbr_plus": choice_tables.otbr_plus,
    "faults": _faults,
    "spread": choice_tables.spread,
    "screening": growth.screening,
    "bench_disarm": choice_tables.disarm,
    "bench_disarm_cifar": choice_tables.disarm,
    "bench_attacks": choice_tables.disarm,
    "bench_defences": defence_tables.defences,
    "bench_detectors": detector_tables.detectors,
    "bench_adaptive": defence_tables.defences,
    "bench_adaptive.evidence": defence_tables.evidence,
    "bench_leaderboard": leaderboard.leaderboard,
    "bench_leaderboard.networks": leaderboard.by_network,
    "bench_leaderboard.summary": leaderboard.summary,
    "bench_recovery": choice_tables.relearned,
    "bench_variants": choice_tables.variants,
    "ablation": _ablation,
    "activeness": _activeness,
    "recipes": _recipes,
    "transport": time_tables.transport,
    "sweep": time_tables.sweep,
    "stacking": time_tables.stacking,
    "second_start": time_tables.second_start,
    "start": time_tables.start,
    "growth": growth.exponents,
    "thousand": growth.large,
    "scanning": time_tables.scanning,
    "devices": machine_tables.devices,
    "hosts": machine_tables.hosts,
    "correlation": _correlation,
}
