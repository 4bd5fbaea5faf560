"""README's tables in Markdown, from the rows of results/*.jsonl.

Every number stands in a row, or is the difference or the ratio of two that are printed beside it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from otbr_jax.detection import roc
from otbr_jax.errors import InputError
from otbr_jax.report import ablation_page
from otbr_jax.report.activeness_page import SCORES
from otbr_jax.report.rows import NOTHING, Row, field, grouped, integer, joined, latest, number, percents, text
from otbr_jax.report.table import CORRELATIONS, percent

# The network that a defence ends with. For one more defence, a line here: its columns are added on the right.
REPAIRED = {"otbr": "fused", "tsbd": "finetuned"}
ORACLES = {"otbr": "oracle's gamma, lambda: ACC / ASR", "tsbd": "oracle's n, m: ACC / ASR"}
ATTACKS = ("none", "badnets", "blended", "sig", "lf", "ssba", "wanet", "input_aware", "trojan")
RECIPES = ("published", "fast")
PUBLISHED = "published: gamma 0.1, lambda 0.5"


def markdown(name: str, rows: Sequence[Row]) -> str:
    """The table of that name, without a line break at its end.

    Raises:
      InputError: if there is no table of that name, or a row lacks a field or holds one of the wrong kind.
    """
    if name not in TABLES:
        raise InputError(f"table: expected one of {[*TABLES]}, found {name!r}")
    return TABLES[name](rows)


def _digits(rows: Sequence[Row]) -> str:
    lines = [
        [
            str(integer(row, "seed")),
            percents(row, "metrics.victim", "acc", "asr"),
            percents(row, "metrics.pruned", "acc", "asr"),
            _repaired(row, "fused"),
            _oracle(row, "fused"),
        ]
        for row in rows
    ]
    titles = ("seed", "victim ACC / ASR", "pruned only", "repaired ACC / ASR / RA", "oracle's gamma, lambda: ACC / ASR")
    return _table(titles, lines)


def _tsbd(rows: Sequence[Row]) -> str:
    """A line for each victim and scheme: what was chosen, what the oracle would choose, how many points lie between."""
    rows = list({(text(row, "cell"), scheme(row)): row for row in rows}.values())
    lines = []
    for row in rows:
        gap = regret(row)
        chosen = ", ".join(number(row, f"choice.{name}", "g") for name in ("n", "m"))
        chosen = "left alone" if field(row, "choice.n") == 0 else chosen
        lines.append(
            [
                f"{text(row, 'dataset')}, {text(row, 'network')}",
                f"{text(row, 'attack', among=ATTACKS)}, seed {integer(row, 'seed')}",
                percents(row, "metrics.victim", "acc", "asr"),
                scheme(row),
                chosen,
                percents(row, "metrics.reinitialized", "acc", "asr"),
                _repaired(row, "finetuned"),
                _oracle(row, "finetuned"),
                joined([NOTHING if points is None else f"{points:+.1f}" for points in gap]),
            ]
        )
    titles = ("victim", "attack", "victim ACC / ASR", "zeroed", "n, m", "re-initialised", "repaired ACC / ASR / RA")
    table = _table((*titles, ORACLES["tsbd"], "regret, points: ACC / ASR"), lines)
    schemes = dict.fromkeys(scheme(row) for row in rows)
    regrets = (f"Zeroed {name}: {_regrets([row for row in rows if scheme(row) == name])}" for name in schemes)
    return "\n\n".join((table, *regrets))


def _otbr_plus(rows: Sequence[Row]) -> str:
    """A line for each victim: what was suspected and chosen without data, against the oracle's choice."""
    rows = list({text(row, "cell"): row for row in rows}.values())
    lines = []
    for row in rows:
        choice = "left alone"
        if _stands_out(row):
            choice = ", ".join(number(row, f"choice.{name}", "g") for name in ("gamma", "lambda"))
        attack, recipe = text(row, "attack", among=ATTACKS), text(row, "recipe")
        poisoned = recipe.partition(", ")[2]
        lines.append(
            [
                f"{text(row, 'dataset')}, {text(row, 'network')}",
                ", ".join(part for part in (attack, f"seed {integer(row, 'seed')}", poisoned) if part),
                percents(row, "metrics.victim", "acc", "asr"),
                f"{integer(row, 'judgement.suspect')}: {suspicion(row):.2f}",
                choice,
                percents(row, "metrics.fused", "acc", "asr"),
                _repaired(row, "patched"),
                _oracle(row, "fused"),
                joined(
                    [
                        NOTHING if points is None else f"{points:+.1f}"
                        for points in regret(row, "patched", oracle="fused")
                    ]
                ),
            ]
        )
    titles = ("victim", "attack", "victim ACC / ASR", "suspect: suspicion", "gamma, lambda", "fused", "repaired")
    table = _table((*titles, ORACLES["otbr"], "regret, points: ACC / ASR"), lines)
    return "\n\n".join((table, _regrets(rows, "patched", oracle="fused"), _detection(rows), _frontier(rows)))


def _variants(rows: Sequence[Row]) -> str:
    """A line for each variant: as published, and the best of its grid in hindsight, against the published one's."""
    latest_rows = list({text(row, "cell"): row for row in rows}.values())
    attacked = grouped([row for row in latest_rows if field(row, "oracle") is not None], "variant")
    clean = grouped([row for row in latest_rows if field(row, "oracle") is None], "variant")
    published = {_victim(row): row for row in latest_rows if text(row, "variant") == "published"}

    def of(row: Row, place: str, metric: str) -> float:
        found = field(row, place)
        return float((found.get("distilled") or found["fused"])[metric])

    lines = []
    for (variant,), found in attacked.items():
        gains = [
            round(of(row, "oracle", "der"), 3) - round(of(published[_victim(row)], "oracle", "der"), 3) for row in found
        ]
        lost = [
            100 * (field(row, "metrics.victim.acc") - of(row, "metrics", "acc")) for row in clean.get((variant,), ())
        ]
        lines.append(
            [
                variant,
                f"{len(found)} + {len(lost)}",
                *(
                    _middle_and_worst([of(row, place, metric) for row in found], metric)
                    for place in ("metrics", "oracle")
                    for metric in ("acc", "asr")
                ),
                f"{statistics.median(gains):+.3f} / {min(gains):+.3f}",
                f"{statistics.median(lost):+.1f} / {max(lost):+.1f}" if lost else NOTHING,
            ]
        )
    titles = ("variant", "backdoored + clean", "gamma 0.1, lambda 0.5: ACC", "ASR", "oracle: ACC", "ASR")
    return _table((*titles, "DER of the oracle against published", "ACC lost by clean ones"), lines)


def _victim(row: Row) -> tuple[str, ...]:
    """What tells the victims of one bench apart."""
    names = ("dataset", "network", "recipe", "attack")
    return *(text(row, name) for name in names), str(integer(row, "seed"))


def _middle_and_worst(values: Sequence[float], metric: str) -> str:
    worst = min(values) if metric == "acc" else max(values)
    return f"{100 * statistics.median(values):.1f} / {100 * worst:.1f}"


def suspicion(row: Row) -> float:
    """The highest suspicion of any class."""
    return max(field(row, "judgement.suspicion"))


def _stands_out(row: Row) -> bool:
    return bool(field(row, "judgement.stands_out"))


def _detection(rows: Sequence[Row]) -> str:
    backdoored = [field(row, "oracle") is not None for row in rows]
    curve = roc(jnp.array([suspicion(row) for row in rows]), jnp.array(backdoored))
    accused = [_stands_out(row) for row in rows]
    found = sum(a and b for a, b in zip(accused, backdoored, strict=True))
    right = sum(
        field(row, "judgement.suspicion")[field(row, "config.attack.target")] >= field(row, "judgement.threshold")
        for row, guilty in zip(rows, backdoored, strict=True)
        if guilty
    )
    wrong, guilty = sum(accused) - found, sum(backdoored)
    return (
        f"Suspicion as a detector: AUC {float(curve.auc):.3f}; at the threshold {found} of {guilty} backdoored networks"
        f" stand out, {right} with the attacker's class, and {wrong} of {len(rows) - guilty} clean ones."
    )


def _frontier(rows: Sequence[Row]) -> str:
    """Medians and worst cases over the backdoored networks, and what clean ones lose, of several ways to repair."""
    backdoored = [row for row in rows if field(row, "oracle") is not None]
    clean = [row for row in rows if field(row, "oracle") is None]

    ways: Mapping[str, Callable[[Row], Mapping[str, float | None] | None]] = {
        "as it came": lambda row: field(row, "metrics.victim"),
        PUBLISHED: _published,
        "chosen without data, fused": lambda row: field(row, "metrics.fused"),
        "patched without data": lambda row: field(row, "metrics.patched"),
        "oracle's gamma, lambda": lambda row: (field(row, "oracle") or {}).get("fused"),
    }
    lines = []
    for name, way in ways.items():
        cells = [name]
        for metric, worst in (("acc", min), ("asr", max)):
            values = [100 * found[metric] for row in backdoored if (found := way(row)) and found[metric] is not None]  # type: ignore[operator]
            cells += [f"{statistics.median(values):.1f}", f"{worst(values):.1f}"]
        lost = [100 * (field(row, "metrics.victim.acc") - found["acc"]) for row in clean if (found := way(row))]
        cells += [f"{statistics.median(lost):+.1f}", f"{max(lost):+.1f}"] if lost else [NOTHING, NOTHING]
        lines.append(cells)
    titles = ("in per cent", "ACC, median", "ACC, worst", "ASR, median", "ASR, worst")
    return _table((*titles, "ACC lost by clean ones, median", "worst"), lines)


def _published(row: Row) -> Mapping[str, Any]:
    """What the published setting does, as the row's sweep has it."""
    for found in field(row, "sweep"):
        if (found["gamma"], found["lambda"]) == (0.1, 0.5):
            return found["fused"]
    raise InputError(f"{row.place}: expected gamma 0.1, lambda 0.5 in the sweep, found others")


def scheme(row: Row) -> str:
    """What of the neurons was set to zero; rows without the setting are older than it, and about weights."""
    return text(row, "config.tsbd.scheme") if "scheme" in (field(row, "config.tsbd") or {}) else "weights"


def regret(row: Row, network: str = "finetuned", *, oracle: str = "finetuned") -> tuple[float | None, float | None]:
    """Points of ACC and of ASR that the oracle's choice is better by; of a clean network, ACC against the network."""
    acc, asr = (_points(row, f"metrics.{network}", metric) for metric in ("acc", "asr"))
    if field(row, "oracle") is None:
        before = _points(row, "metrics.victim", "acc")
        return (None if None in (before, acc) else before - acc), None  # type: ignore[operator]
    best, least = (_points(row, f"oracle.{oracle}", metric) for metric in ("acc", "asr"))
    return (
        None if acc is None or best is None else best - acc,
        None if asr is None or least is None else asr - least,
    )


def _points(row: Row, path: str, metric: str) -> float | None:
    """In per cent as it is printed, so that a reader who subtracts finds the same."""
    printed = percents(row, path, metric)
    return None if printed == NOTHING else float(printed)


def _regrets(rows: Sequence[Row], network: str = "finetuned", *, oracle: str = "finetuned") -> str:
    """Medians and worst cases, of backdoored and of clean networks."""
    clean = [regret(row, network, oracle=oracle)[0] for row in rows if field(row, "oracle") is None]
    backdoored = [regret(row, network, oracle=oracle) for row in rows if field(row, "oracle") is not None]
    parts = []
    for title, found in (
        (f"{len(backdoored)} backdoored networks, regret in points of ACC", [acc for acc, _ in backdoored]),
        ("of ASR", [asr for _, asr in backdoored]),
        (f"{len(clean)} clean networks, points of ACC lost", clean),
    ):
        known = [points for points in found if points is not None]
        if known:
            parts.append(f"{title}: median {statistics.median(known):+.1f}, worst {max(known):+.1f}")
    return "; ".join(parts) + "."


def _ablation(rows: Sequence[Row]) -> str:
    """A line for each variant of each comparison, a column for each data set and attack; and a table of overlaps."""
    kinds = ("attack", "poisoning_ratio", "clean_fraction", "choice", "scheme", "finetuning")
    for row in rows:
        for name in ("compared", "curve", "tac_overlap", "n"):
            field(row, name)
    rows = list({tuple(str(field(row, name)) for name in ("dataset", "network", *kinds)): row for row in rows}.values())
    groups = {key: [row.values for row in own] for key, own in grouped(rows, "dataset", "attack").items()}
    lines, found = [], []
    for comparison in ablation_page.NOTES:
        curves = {key: ablation_page.compared(own, comparison, key[1]) for key, own in groups.items()}
        for name in dict.fromkeys(name for own in curves.values() for name in own):
            cells = [
                _at_n(curves[key][name], own[0]["n"]) if name in curves[key] else NOTHING for key, own in groups.items()
            ]
            lines.append([comparison, name, *cells])
    known = {key: ablation_page.overlaps(own, key[1]) for key, own in groups.items()}
    for name in dict.fromkeys(name for own in known.values() for name in own):
        cells = [
            " / ".join(percent(own[name][part]) for part in ("layers", "last")) if name in own else NOTHING
            for own in known.values()
        ]
        found.append([name, *cells])
    columns = [f"{dataset}, {attack}" for dataset, attack in groups]
    overlap = _table(("found by", *columns), found)
    return f"{_table(('comparison', 'variant', *columns), lines)}\n\n{overlap}"


def _at_n(curve: Sequence[Mapping[str, float]], n: float) -> str:
    point = next(point for point in curve if point["n"] == n)
    return " / ".join(percent(point[metric]) for metric in ("acc", "asr"))


def _activeness(rows: Sequence[Row]) -> str:
    """A line for each victim with its scores, and one with how well each score tells backdoored networks from clean."""
    lines = []
    for row in rows:
        if field(row, "attack") == "all":
            kinds = f"{integer(row, 'backdoored')} backdoored, {integer(row, 'clean')} clean: AUC"
            lines.append([f"**{kinds}**", NOTHING, *(number(row, f"auc.{name}", ".3g") for name in SCORES)])
        else:
            name = f"{text(row, 'attack', among=ATTACKS)}, seed {integer(row, 'seed')}"
            scores = [number(row, f"scores.{score}", ".3g") for score in SCORES]
            lines.append([name, percents(row, "victim", "acc", "asr"), *scores])
    return _table(("victim", "ACC / ASR", *SCORES.values()), lines)


def _torch_victims(rows: Sequence[Row]) -> str:
    lines = [
        [
            f"`{text(row, 'file')}`",
            percents(row, "metrics.victim", "acc", "asr", "ra"),
            percents(row, "metrics.pruned", "acc", "asr", "ra"),
            _bold(percents(row, "metrics.fused", "acc", "asr", "ra")),
            _oracle(row, "fused"),
        ]
        for row in rows
    ]
    titles = ("file", "as it came: ACC / ASR / RA", "pruned only", "repaired", "oracle's gamma, lambda: ACC / ASR")
    return _table(titles, lines)


def _loops(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        host, scan, here = (
            number(row, f"milliseconds_per_step.{program}", ".1f")
            for program in ("host loop", "scan", "scan, channels last")
        )
        ratio = NOTHING if NOTHING in (scan, here) or not float(here) else f"{float(scan) / float(here):.1f}"
        lines.append([text(row, "hardware"), host, scan, here, ratio])
    titles = ("ms a step", "called from the host", "in a loop, JAX's gradients", "in a loop, channels last", "ratio")
    return _table(titles, lines)


def _bench(rows: Sequence[Row]) -> str:
    """A table for each data set, network and recipe, its defences side by side."""
    groups = grouped(latest(rows, "cell"), "dataset", "network", "recipe")
    return "\n\n".join(_bench_group(groups[group]) for group in sorted(groups))


def _bench_group(rows: Sequence[Row]) -> str:
    lines, seeds = _by_attack(rows)
    clean = {seed: own[0] for (attack, seed), own in lines.items() if attack == "none"}
    defenses = [name for name in REPAIRED if any(_defense(row) == name for row in rows)]
    titles = ["attack", "victim ACC / ASR", "ACC against clean, points", "trigger PSNR / SSIM"]
    table = [
        [
            _named(attack, seed, seeds),
            percents(own[0], "metrics.victim", "acc", "asr"),
            NOTHING if attack == "none" else _difference(own[0], clean.get(seed), "metrics.victim", "acc"),
            joined([number(own[0], "trigger.psnr", ".1f"), number(own[0], "trigger.ssim", ".3f")]),
        ]
        for (attack, seed), own in lines.items()
    ]
    for name in defenses:
        oracle = any(_defense(row) == name and field(row, "oracle") is not None for row in rows)
        titles += [f"{name.upper()}: ACC / ASR / RA", "DER", *([ORACLES[name]] if oracle else [])]
        for cells, own in zip(table, lines.values(), strict=True):
            found = [row for row in own if _defense(row) == name]
            cells += _defense_cells(found[0], REPAIRED[name], oracle=oracle) if found else [NOTHING] * (2 + oracle)
    data = "; ".join(dict.fromkeys(text(row, "data") for row in rows))
    heading = f"**{text(rows[0], 'dataset')}, {text(rows[0], 'network')}**, recipe {text(rows[0], 'recipe')}: {data}."
    return f"{heading}\n\n{_table(titles, table)}"


def _defense_cells(row: Row, network: str, *, oracle: bool) -> list[str]:
    cells = [_repaired(row, network), number(row, f"metrics.{network}.der", ".3f")]
    return [*cells, _oracle(row, network)] if oracle else cells


def _recipes(rows: Sequence[Row]) -> str:
    """A line for each data set, network and attack, the recipes of training side by side."""
    table = []
    groups = grouped(latest(rows, "cell", "recipe"), "dataset", "network")
    for dataset, network in sorted(groups):
        lines, seeds = _by_attack(groups[dataset, network])
        for (attack, seed), own in lines.items():
            cells = [dataset, network, _named(attack, seed, seeds)]
            for recipe in RECIPES:
                found = [row for row in own if text(row, "recipe", among=RECIPES) == recipe]
                cells += _training_cells(found[0]) if found else [NOTHING] * 3
            table.append(cells)
    titles = [title for recipe in RECIPES for title in (f"{recipe}: epochs", "seconds", "ACC / ASR")]
    return _table(("data set", "network", "attack", *titles), table)


def _training_cells(row: Row) -> list[str]:
    return [
        number(row, "training.epochs", "g"),
        number(row, "training.seconds", ".0f"),
        percents(row, "metrics.victim", "acc", "asr"),
    ]


def _transport(rows: Sequence[Row]) -> str:
    """Entropic against exact plans: a line for each size of layer and epsilon, and one for each repaired network."""
    rows = list({(text(row, "network"), number(row, "epsilon", "g")): row for row in rows}.values())
    lines, repaired = [], []
    for row in rows:
        epsilon = number(row, "epsilon", "g")
        for index, values in enumerate(field(row, "sizes")):
            size = Row(f"{row.place}: sizes[{index}]", values)
            lines.append(
                [
                    text(row, "network"),
                    str(integer(size, "neurons")),
                    epsilon,
                    number(size, "cost_gap", ".4f"),
                    number(size, "marginal_error", ".4f"),
                    number(size, "fused_difference", ".4f"),
                    str(integer(size, "iterations")) + ("" if field(size, "converged") else " (stopped)"),
                    number(size, "seconds", ".3f"),
                    number(size, "exact_seconds", ".3f"),
                ]
            )
        repaired.append(
            [
                text(row, "network"),
                percents(row, "victim", "acc", "asr"),
                percents(row, "exact", "acc", "asr"),
                epsilon,
                percents(row, "repaired", "acc", "asr"),
            ]
        )
    titles = ("network", "neurons", "epsilon", "cost gap", "marginal error", "fused weights differ by", "iterations")
    networks = ("network", "victim ACC / ASR", "repaired with exact plans", "epsilon", "repaired with entropic plans")
    return f"{_table((*titles, 'seconds', 'exact: seconds'), lines)}\n\n{_table(networks, repaired)}"


def _sweep(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        for name, path in (("one setting", "single"), (f"grid of {integer(row, 'settings')}", "grid")):
            lines.append(
                [
                    name,
                    number(row, f"{path}.seconds", ".2f"),
                    number(row, f"{path}.without_measuring", ".2f"),
                    str(integer(row, f"{path}.traces")),
                    number(row, f"{path}.temporary_mib", ".0f"),
                    number(row, f"{path}.temporary_mib_vgg19_bn", ".0f"),
                ]
            )
        ratios = [number(row, f"ratio_{name}", ".1f") for name in ("seconds", "without_measuring")]
        lines.append(["ratio", *ratios, NOTHING, NOTHING, NOTHING])
    titles = ("", "seconds", "without measuring", "compilations", "temporary memory, MiB", "of VGG19-BN, MiB")
    return _table(titles, lines)


def _correlation(rows: Sequence[Row]) -> str:
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
    return _table(("victim", "attack", "ACC / ASR", *titles), lines)


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


def _named(attack: str, seed: int, seeds: bool) -> str:
    return f"{attack}, seed {seed}" if seeds else attack


def _defense(row: Row) -> str:
    return text(row, "defense", among=REPAIRED)


def _difference(row: Row, other: Row | None, path: str, metric: str) -> str:
    """In points, of the values as they are printed, so that a reader finds the same."""
    values = NOTHING if other is None else [percents(each, path, metric) for each in (row, other)]
    return NOTHING if NOTHING in values else f"{float(values[0]) - float(values[1]):+.1f}"


def _repaired(row: Row, network: str) -> str:
    path = f"metrics.{network}"
    return joined([_bold(percents(row, path, "acc", "asr")), percents(row, path, "ra")])


def _bold(cell: str) -> str:
    return cell if cell == NOTHING else f"**{cell}**"


def _oracle(row: Row, network: str) -> str:
    if field(row, "oracle") is None:
        return NOTHING
    names = ("n", "m") if network == "finetuned" else ("gamma", "lambda")
    setting = ", ".join(number(row, f"oracle.{name}", "g") for name in names)
    return f"{setting}: {percents(row, f'oracle.{network}', 'acc', 'asr')}"


def _table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = f"|{'---|' * len(titles)}"
    head, *body = (f"| {' | '.join(cells)} |" for cells in (titles, *lines))
    return "\n".join((head, rule, *body))


TABLES: Mapping[str, Callable[[Sequence[Row]], str]] = {
    "digits": _digits,
    "torch_victims": _torch_victims,
    "loops": _loops,
    "bench_cpu": _bench,
    "bench_paper": _bench,
    "bench_tsbd": _tsbd,
    "bench_otbr_plus": _otbr_plus,
    "bench_variants": _variants,
    "ablation": _ablation,
    "activeness": _activeness,
    "recipes": _recipes,
    "transport": _transport,
    "sweep": _sweep,
    "correlation": _correlation,
}
