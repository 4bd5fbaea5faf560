"""`python -m launch.tables`: no table says what its rows do not."""

import copy
import itertools
import json
import pathlib
import re

import numpy as np
import pytest
from launching import launch

from otbr_jax import InputError
from otbr_jax.report import activeness_page, blocks, cells
from otbr_jax.report.numbers import share
from otbr_jax.report.results_tables import TABLES, markdown
from otbr_jax.report.rows import Row, parse

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = "# Title\n\n<!-- table: digits -->\n<!-- end -->\n\nBetween.\n\n<!-- table: loops -->\nold\n<!-- end -->\nEnd.\n"


def metrics(rng, *names, clean=False):
    rates = {name: {metric: round(rng.random(), 4) for metric in ("acc", "asr", "ra", "der")} for name in names}
    return {name: row | ({"asr": None, "ra": None, "der": None} if clean else {}) for name, row in rates.items()}


def cell(rng, attack="badnets", *, seed=0, network="preact_resnet10-w16", recipe="fast", defense="otbr", **fields):
    clean = attack == "none"
    return {
        "cell": f"cifar10/{network}/{attack}/{defense}/seed{seed}",
        **{"dataset": "cifar10", "network": network, "attack": attack, "defense": defense, "recipe": recipe},
        "seed": seed,
        "data": "CIFAR-10, 2,000 of its test images",
        "metrics": metrics(rng, "victim", "unlearned", "pruned", "fused", clean=clean),
        "choice": {"gamma": 0.1, "lambda": 0.5, "chosen_by": "config"},
        "oracle": None if clean else {"gamma": 0.25, "lambda": 0.5} | metrics(rng, "fused"),
        "trigger": None if clean else {"psnr": round(30 * rng.random(), 3), "ssim": round(rng.random(), 5)},
        "training": {"epochs": 12, "seconds": round(300 * rng.random(), 1), "images_per_second": 480.2},
    } | fields


def plain(rng, seed):
    """A row as digits.jsonl and torch_victims.jsonl have it."""
    row = cell(rng, seed=seed)
    kept = {name: row[name] for name in ("seed", "metrics", "choice", "oracle")}
    return kept | {"file": f"victim{seed}.pt", "defense": "otbr", "seconds": 2.0}


def timing(rng, seed):
    programs = ("host loop", "scan", "scan, channels last")
    times = {program: round(float(1000 * rng.random()), 2) for program in programs}
    return {"hardware": f"{seed} cores; cpu", "milliseconds_per_step": times}


def stepped(rng, seed):
    """A row as unlearning_step.jsonl has it."""
    units = ("seconds", "processor_seconds")
    programs = ("jax", "jax, plain", "torch", "torch, channels last")
    row = {program: {unit: value(rng) for unit in units} for program in programs}
    return row | {f"ratio_{unit}": value(rng) for unit in units}


def value(rng):
    return round(float(rng.random()), 4)


def transported(rng, seed):
    sizes = [
        {"neurons": neurons, "layers": 2, "converged": neurons == 64, "iterations": int(rng.integers(10, 5000))}
        | {name: value(rng) for name in ("cost_gap", "marginal_error", "fused_difference", "seconds", "exact_seconds")}
        for neurons in (64, 128)
    ]
    row = {"network": f"preact_resnet10-w{seed}", "epsilon": 10.0**-seed, "sizes": sizes}
    return row | {name: {"acc": value(rng), "asr": value(rng)} for name in ("victim", "exact", "repaired")}


def swept(rng, seed):
    names = ("seconds", "without_measuring", "temporary_mib", "temporary_mib_vgg19_bn")
    row = {"settings": 35, "screening_images": 100}
    row |= {f"ratio_{name}": value(rng) for name in ("seconds", "on_all", "without_measuring")}
    paths = ("single", "grid", "grid_on_all")
    return row | {path: {"traces": 1} | {name: value(rng) for name in names} for path in paths}


def stacked_row(rng, seed):
    """A row as stacking.jsonl has it."""
    names = ("victims_per_minute", "cpu_seconds_per_victim")
    times = {name: {size: value(rng) for size in ("1", "2", "4", "8")} for name in names}
    return {"network": "vgg7_bn-w4", "task": ("training", "otbr")[seed - 1], "sizes": [1, 2, 4, 8]} | times


def started(rng, seed):
    measures = ("seconds", "cpu_seconds")
    row = {
        name: {measure: value(rng) for measure in measures}
        | {"spent": {part: value(rng) for part in ("compile", "run", "disk")}}
        for name in ("first", "again", "elsewhere")
    }
    return row | {f"ratio_{name}_cpu_seconds": value(rng) for name in ("again", "elsewhere")}


def begun(rng, seed):
    names = ("python", "jax", "otbr_jax", "public_names", "defences", "help", "wrong_flag", "missing_file")
    row = {name: {measure: value(rng) for measure in ("seconds", "cpu_seconds")} for name in names}
    return row | {f"ratio_{other}": {name: value(rng) for name in names} for other in ("jax", "python")}


def grown(rng, seed):
    """A row as growth.jsonl has it."""
    row = {
        "stage": ("trigger inversion", "transport")[seed - 1],
        "factor": ("width", "neurons")[seed - 1],
        "values": [8, 16],
    }
    return row | {"exponent_time": value(rng), "exponent_memory": value(rng)}


def largest(rng, seed):
    """A row as thousand.jsonl has it; the first one did not run."""
    row = {"defense": "otbr", "step": ("unlearned", "fused")[seed - 1], "settings": "as they are"}
    return row | {"gigabytes": value(rng), "seconds": None if seed == 1 else value(rng)}


def scanned(rng, seed):
    """A row as scanning.jsonl has it."""
    row = {"detector": ("trigger_size", "mm_bd")[seed - 1], "network": "a-w8", "checkpoints": 4}
    return row | {name: value(rng) for name in ("first_cpu_seconds", "cpu_seconds", "per_cpu_minute")}


def correlated(rng, seed):
    correlations = {
        kind: {part: {name: value(rng) for name in ("pearson", "spearman", "overlap")} for part in ("all", "last")}
        for kind in ("random", "clean")
    }
    row = {"dataset": "digits", "network": f"preact_resnet10-w{seed}", "attack": "badnets", "file": None}
    return row | {"with_poison": correlations, "victim": {"acc": value(rng), "asr": value(rng)}}


def chosen(rng, seed):
    """A row as bench_tsbd.jsonl has it; of a clean network the second one."""
    row = {"cell": f"cell{seed}", "dataset": "digits", "network": "a-w8", "attack": "badnets", "seed": seed}
    row |= {"choice": {"n": 0.3, "m": 0.7}, "oracle": {"n": 0.4, "m": 0.7} | metrics(rng, "finetuned")}
    row["metrics"] = metrics(rng, "victim", "unlearned", "reinitialized", "finetuned")
    row["config"] = {"tsbd": {"scheme": "neurons"}}
    return row if seed < 2 else row | {"attack": "none", "oracle": None}


def suspected(rng, seed):
    """A row as bench_otbr_plus.jsonl has it; of a clean network, which is returned unchanged, the second one."""
    row = cell(rng, "none" if seed == 2 else "badnets", seed=seed)
    row["metrics"] = metrics(rng, "victim", "fused", "trigger_finetuned", clean=seed == 2)
    row["verdict"] = {"backdoored": ("yes", "no")[seed - 1], "suspect": 0, "scores": [0.7 - 0.4 * (seed == 2), 0.1]}
    row["verdict"]["threshold"] = 0.5
    row["sweep"] = [{"gamma": 0.1, "lambda": 0.5} | metrics(rng, "fused", clean=seed == 2)]
    row["config"] = {"attack": {"target": 0}}
    return row if seed == 2 else row | {"oracle": {"gamma": 0.25, "lambda": 0.5} | metrics(rng, "fused")}


def disarmed(rng, seed):
    """A row as bench_disarm.jsonl has it; of a clean network, which the threshold is set on, the second one."""
    row = suspected(rng, seed) | {"seed": (1, 12)[seed - 1]}
    row["metrics"] = metrics(rng, "victim", "disarmed", clean=seed == 2)
    row["detection"] = {"family": "low_frequency"}
    return row | {"stage_seconds": {"procedural": 5.0, "minimal": 40.2, "disarmed": 30.0}}


def searched(rng, seed):
    """A row as spread.jsonl has it; the second one is a clean network's."""
    row = {"dataset": "digits", "network": "a-w8", "attack": ("badnets", "none")[seed - 1], "seed": seed}
    row |= {name: [round(float(one), 1) for one in rng.uniform(0, 9, 5)] for name in ("target", "highest")}
    return row | {"flagged": 4, "right": 3, "searches": 5}


def screened(rng, seed):
    """A row as screening.jsonl has it."""
    row = {"attack": ("trojan", "none")[seed - 1], "acc": 0.98, "asr": (1.0, None)[seed - 1], "screenings": 5}
    verdict = {"suspect": int(rng.integers(100)), "score": round(float(rng.uniform(0, 9)), 4)}
    verdict["backdoored"] = ("yes", "no")[seed - 1]
    kept = [int(rng.integers(6)) for _ in range(2)]
    return row | {
        "among": [1, 3],
        "kept": (kept, None)[seed - 1],
        "of_some": verdict,
        "of_all": (None, verdict)[seed - 1],
    }


def faulty(rng, seed):
    """A row as faults.jsonl has it; the second one is the bad inputs'."""
    if seed == 2:
        return {"program": "all", "fault": "bad input", "faults": 116, "in_one_line": int(rng.integers(116))}
    counts = {name: int(rng.integers(50)) for name in ("faults", "runs", "same_bits", "tracebacks", "half_written")}
    return {"program": "repair", "fault": "kills", **counts, "other_statuses": 0, "slower_than_10_s": 0}


def defended(rng, seed):
    """A row as bench_defences.jsonl has it; the second one is another way to defend the first one's victim."""
    row = cell(rng, "blended") | {"cell": f"cell{seed}", "variant": ("", "1 % clean")[seed - 1], "seconds": 1.0}
    row["metrics"]["victim"] = {"acc": 0.9, "asr": 1.0, "ra": 0.0}
    return row


def detected(rng, seed):
    """A row as bench_detectors.jsonl has it; the second one is a clean network's, by another detector."""
    row = {"cell": f"cell{seed}", "dataset": "digits", "network": "a-w8", "attack": ("badnets", "none")[seed - 1]}
    row |= {"recipe": "fast", "variant": "", "seed": seed, "detector": ("mm_bd", "neural_cleanse")[seed - 1]}
    row |= {"needs": ("none", "clean images")[seed - 1], "target": 0, "detector_seconds": round(60 * rng.random(), 1)}
    row["verdict"] = {"backdoored": ("yes", "no")[seed - 1], "score": value(rng), "suspect": 0}
    return row | {"metrics": {"victim": {"acc": value(rng), "asr": 1.0}}}


def varied(rng, seed):
    """A row as bench_variants.jsonl has it."""
    row = cell(rng)
    return row | {"cell": f"cell{seed}", "variant": ("published", "norms kept")[seed - 1]}


def ablated(rng, seed):
    """A row as ablation.jsonl has it."""
    row = {"dataset": "digits", "network": "a-w8", "attack": "badnets", "poisoning_ratio": 0.1, "clean_fraction": 0.05}
    row |= {"choice": "nwc", "scheme": ("sub-weights", "all weights")[seed - 1], "finetuning": "activeness-aware"}
    row["compared"] = {"what is set to zero": row["scheme"], "fine-tuning": "activeness-aware"}
    row["curve"] = [{"n": n} | metrics(rng, "reinitialized", "finetuned") for n in (0.1, 0.3)]
    row["tac_overlap"] = {"layers": value(rng), "last": value(rng), "top": 0.1}
    return row | {"n": 0.3, "m": 0.7}


def watched(rng, seed):
    """A row as activeness.jsonl has it; the last one has the AUCs."""
    if seed == 2:
        auc = {name: value(rng) for name in activeness_page.SCORES}
        return {"attack": "all", "auc": auc, "backdoored": 1, "clean": 1, "data": "5 images"}
    row = {"attack": "badnets", "seed": seed, "victim": {"acc": value(rng), "asr": value(rng)}}
    return row | {"scores": {name: value(rng) for name in activeness_page.SCORES}}


def shared(rng, seed):
    """A row as devices.jsonl has it."""
    sums = {"instructions": int(rng.integers(1, 99)), "bytes": 5, "largest": int(rng.integers(100, 9999))}
    stage = {"collectives": {"all-reduce": sums}, "apart": value(rng)}
    return {"devices": 8, "stages": {"otbr: unlearned": stage, "otbr: scores": {"collectives": {}, "apart": 0.0}}}


def hosted(rng, seed):
    """A row as hosts.jsonl has it; the second one without kills."""
    row = {"processes": 2 * seed, "metrics_apart": value(rng)}
    more = {"kills": 6, "clear_lines": 6, "same_bits": 5, "slowest_end_s": value(rng)}
    return row | (more if seed == 1 else {})


MADE = {
    "devices": shared,
    "hosts": hosted,
    "activeness": watched,
    "bench_tsbd": chosen,
    "bench_otbr_plus": suspected,
    "bench_disarm": disarmed,
    "bench_disarm_cifar": disarmed,
    "bench_attacks": disarmed,
    "faults": faulty,
    "spread": searched,
    "screening": screened,
    "bench_defences": defended,
    "bench_adaptive": defended,
    "bench_detectors": detected,
    "bench_recovery": suspected,
    "bench_variants": varied,
    "ablation": ablated,
    "loops": timing,
    "unlearning_step": stepped,
    "transport": transported,
    "sweep": swept,
    "stacking": stacked_row,
    "second_start": started,
    "start": begun,
    "growth": grown,
    "thousand": largest,
    "scanning": scanned,
    "correlation": correlated,
}


COMPUTED = {
    *("bench_leaderboard", "bench_leaderboard.networks", "bench_leaderboard.summary"),
    "bench_adaptive.evidence",
}
"""Tables of medians, means and spreads: their own tests compute them again."""


def example_rows(name, rng):
    """Handmade values of rows for the table of that name."""
    if name in MADE:
        return [MADE[name](rng, seed) for seed in range(1, 3)]
    if not name.startswith(("bench", "recipes")):
        return [plain(rng, seed) for seed in range(3)]
    recipes = ("published", "fast") if name == "recipes" else ("fast",)
    places = itertools.product(("wanet", "none", "badnets"), ("a-w16", "b-w64"), (0, 1), recipes)
    return [cell(rng, attack, network=net, seed=seed, recipe=recipe) for attack, net, seed, recipe in places]


def table(name, values):
    return markdown(name, rows(values))


def rows(values):
    return [Row(f"{number}", row) for number, row in enumerate(values, start=1)]


def numbers(text):
    text = re.sub(r"\(\d+ to \d+ %\)", "", text)  # intervals, see test_a_share_and_its_interval
    return re.findall(r"(?<![\w.])[+-]?\d+(?:\.\d+)?(?![\w.])", text.replace(",", ""))


def leaves(value):
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def lines_of(text, key):
    return [[part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith(key)]


def test_a_share_and_its_interval():
    assert share(7, 10) == "7 of 10 (40 to 89 %)"
    assert share(0, 10) == "0 of 10 (0 to 28 %)"
    assert share(0, 0) == "0 of 0"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", sorted(set(TABLES) - COMPUTED))
def test_every_number_is_in_a_row_or_computed_from_two_that_are_printed(name, seed):
    rng = np.random.default_rng(seed)
    values = example_rows(name, rng)
    known = [leaf for row in values for leaf in leaves(row)]
    texts = {number for leaf in known if isinstance(leaf, str) for number in numbers(leaf)}
    floats = np.array([leaf for leaf in known if isinstance(leaf, int | float)])
    for line in table(name, values).splitlines():
        printed = [float(number) for number in numbers(line)]
        for number in numbers(line):
            half = 0.5000001 * 10.0 ** -len(number.partition(".")[2])
            in_a_row = any((abs(scale * floats - float(number)) <= half).any() for scale in (1, 100))
            pairs = itertools.permutations(printed, 2)
            ratio = name == "loops" and any(b and abs(a / b - float(number)) <= half for a, b in pairs)
            signed = number[0] in "+-" and name.startswith("bench")
            assert signed or in_a_row or ratio or number in texts, (number, line)


@pytest.mark.parametrize("name", ["bench_cpu", "bench_paper"])
def test_differences_are_those_of_what_stands_in_the_table(name):
    text = table(name, example_rows(name, np.random.default_rng(0)))
    for part in text.split("**cifar10")[1:]:
        for seed in ("0", "1"):
            lines = {line[0]: line for line in lines_of(part, "| ") if line[0].endswith(f"seed {seed}")}
            clean = float(lines[f"none, seed {seed}"][1].split(" / ")[0])
            assert lines[f"none, seed {seed}"][2] == "-"
            for attack in ("badnets", "wanet"):
                _, victim, difference, *_ = lines[f"{attack}, seed {seed}"]
                assert difference == f"{float(victim.split(' / ')[0]) - clean:+.1f}"


def test_the_bench_table_to_the_letter():
    rng = np.random.default_rng(0)
    clean, attacked = cell(rng, "none"), cell(rng, "badnets")
    clean["metrics"]["victim"]["acc"], clean["metrics"]["fused"]["acc"] = 0.831, 0.762
    attacked["metrics"] |= {
        "victim": {"acc": 0.8141, "asr": 0.9411, "ra": 0.052, "der": 0.5},
        "fused": {"acc": 0.7652, "asr": 0.00911, "ra": 0.7811, "der": 0.94155},
    }
    attacked["oracle"] = {"gamma": 0.15, "lambda": 0.5, "fused": {"acc": 0.77, "asr": None}}
    attacked["trigger"] = {"psnr": 24.14, "ssim": 0.9701}
    assert table("bench_cpu", [attacked, clean]).splitlines() == [
        "**cifar10, preact_resnet10-w16**, recipe fast: CIFAR-10, 2,000 of its test images.",
        "",
        "| attack | victim ACC / ASR | ACC against clean, points | trigger PSNR / SSIM | OTBR: ACC / ASR / RA | DER "
        "| oracle's gamma, lambda: ACC / ASR |",
        "|---|---|---|---|---|---|---|",
        "| none | 83.1 / - | - | - | **76.2 / -** / - | - | - |",
        "| badnets | 81.4 / 94.1 | -1.7 | 24.1 / 0.970 | **76.5 / 0.9** / 78.1 | 0.942 | 0.15, 0.5: 77.0 / - |",
    ]


def test_scores_to_the_letter():
    rng = np.random.default_rng(0)
    attacked, clean = suspected(rng, 1), suspected(rng, 2)
    missed = suspected(rng, 1) | {"cell": "another"}
    missed["verdict"] = {"threshold": 0.5, "backdoored": "no", "suspect": 1, "scores": [0.1, 0.3]}
    alarm = suspected(rng, 2) | {"cell": "a clean one"}
    alarm["verdict"] = {"threshold": 0.5, "backdoored": "yes", "suspect": 1, "scores": [0.1, 0.5]}
    text = table("bench_otbr_plus", [attacked, clean, missed, alarm])
    assert [line[3:5] for line in lines_of(text, "| cifar10")] == [
        ["0: 0.70", "0.1, 0.5"], ["0: 0.30", "unchanged"], ["1: 0.30", "unchanged"], ["1: 0.50", "0.1, 0.5"]
    ]  # fmt: skip
    assert (
        "The anomaly score as a detector: AUC 0.625; at the threshold 1 of 2 backdoored networks are flagged, 1 for "
        "the attacker's class, and 1 of 2 clean ones."
    ) in text
    (line,) = lines_of(text, "| fine-tuned on inverted triggers")
    asr = [100 * row["metrics"]["trigger_finetuned"]["asr"] for row in (attacked, missed)]
    assert line[3:5] == [f"{sum(asr) / 2:.1f}", f"{max(asr):.1f}"]
    attacked["sweep"][0]["gamma"] = 0.2
    with pytest.raises(InputError, match=r"1: expected gamma 0.1, lambda 0.5 in the sweep, found others"):
        table("bench_otbr_plus", [attacked])


def test_regrets_to_the_letter():
    rng = np.random.default_rng(0)
    first, clean = chosen(rng, 1), chosen(rng, 2)
    second = chosen(rng, 1) | {"cell": "another", "seed": 0}
    for row, values in ((first, (0.974, 0.011, 0.98, 0.009)), (second, (0.97, 0.05, 0.96, 0.01))):
        row["metrics"]["finetuned"] |= {"acc": values[0], "asr": values[1]}
        row["oracle"]["finetuned"] |= {"acc": values[2], "asr": values[3]}
    clean["metrics"]["victim"] = {"acc": 0.99, "asr": None, "ra": None, "der": None}
    clean["metrics"]["finetuned"] = {"acc": 0.985, "asr": None, "ra": None, "der": None}
    clean["choice"] = {"n": 0.0, "m": 0.0}
    older = chosen(rng, 1) | {"config": {"tsbd": {}}}
    lines = table("bench_tsbd", [first, second, clean, older]).splitlines()
    assert [line.split(" | ")[3] for line in lines[2:6]] == ["neurons", "neurons", "neurons", "weights"]
    assert [line.split(" | ")[4] for line in lines[2:5]] == ["0.3, 0.7", "0.3, 0.7", "unchanged"]
    *lines, _, last = table("bench_tsbd", [first, second, clean]).splitlines()
    assert [line.split(" | ")[-1] for line in lines[2:]] == ["+0.6 / +0.2 |", "-1.0 / +4.0 |", "+0.5 / - |"]
    assert last == (
        "Zeroed neurons: 2 backdoored networks, regret in points of ACC: median -0.2, worst +0.6; "
        "of ASR: median +2.1, worst +4.0; "
        "1 clean networks, points of ACC lost: median +0.5, worst +0.5."
    )


def test_an_ablation_has_a_column_for_each_victim():
    rng = np.random.default_rng(0)
    values = [ablated(rng, 1), ablated(rng, 2), ablated(rng, 1) | {"dataset": "mnist"}]
    text = table("ablation", values)
    assert lines_of(text, "| comparison") == [["comparison", "variant", "digits, badnets", "mnist, badnets"]]
    assert [line[:2] for line in lines_of(text, "| ")[1:5]] == [
        ["what is set to zero", "sub-weights"],
        ["what is set to zero", "all weights"],
        ["fine-tuning", "none"],
        ["fine-tuning", "activeness-aware"],
    ]
    assert lines_of(text, "| what is set to zero | all")[0][-1] == "-"


def test_one_more_defence_adds_its_columns():
    rng = np.random.default_rng(0)
    otbr, alone = cell(rng, "badnets"), cell(rng, "sig")
    other = cell(rng, "badnets", defense="tsbd", oracle=None)
    other["metrics"] = {
        "victim": otbr["metrics"]["victim"],
        "finetuned": {"acc": 0.5, "asr": 0.25, "ra": 0.125, "der": 0.75},
    }
    text = table("bench_paper", [other, otbr, alone])
    head, badnets, sig = (lines_of(text, f"| {name}")[0] for name in ("attack", "badnets", "sig"))
    assert head[4:] == [
        "OTBR: ACC / ASR / RA",
        "DER",
        "oracle's gamma, lambda: ACC / ASR",
        "TSBD: ACC / ASR / RA",
        "DER",
    ]
    assert badnets[7:] == ["**50.0 / 25.0** / 12.5", "0.750"]
    assert sig[7:] == ["-", "-"]
    other["metrics"]["victim"] = {"acc": 0.1, "asr": 0.1, "ra": 0.1, "der": 0.5}
    with pytest.raises(InputError, match=r"2: expected the victim of 1, ACC / ASR .*, found another, 10.0 / 10.0"):
        table("bench_paper", [otbr, other])


def test_a_defence_that_nobody_knows_has_the_columns_that_its_rows_say():
    rng = np.random.default_rng(0)
    row = cell(rng, defense="magic", axes=["strength"], choice={"strength": 3, "chosen_by": "config"})
    row["metrics"] = metrics(rng, "victim", "scrubbed", "polished")
    row["oracle"] = {"strength": 7, "chosen_by": "oracle"} | metrics(rng, "scrubbed")
    head, line = lines_of(table("bench_cpu", [row]), "| ")
    assert head[4:] == ["MAGIC: ACC / ASR / RA", "DER", "oracle's strength: ACC / ASR"]
    polished, best = row["metrics"]["polished"], row["oracle"]["scrubbed"]
    assert line[5:] == [f"{polished['der']:.3f}", f"7: {100 * best['acc']:.1f} / {100 * best['asr']:.1f}"]


def test_rows_say_which_networks_and_settings_they_are_about():
    old = Row("1", {"choice": {"n": 0.1, "m": 0.7, "chosen_by": "x"}, "metrics": {"victim": {}, "finetuned": {}}})
    assert (cells.repaired_network(old), cells.axes(old)) == ("finetuned", ["n", "m"])
    oracle = {"oracle": {"n": 0.2, "m": 0.7, "chosen_by": "oracle", "finetuned": {"acc": 1.0}}}
    assert cells.swept_network(Row("1", oracle)) == "finetuned"
    nothing = Row("1", {"metrics": None, "oracle": None})
    assert (cells.repaired_network(nothing), cells.swept_network(nothing)) == ("", "")


def test_the_last_row_of_a_cell_wins_and_attacks_are_in_their_order():
    rng = np.random.default_rng(0)
    values = [cell(rng, attack) for attack in reversed(cells.ATTACKS)]
    values.append(copy.deepcopy(values[0]))
    values[-1]["metrics"]["victim"]["acc"] = 0.123
    lines = lines_of(table("bench_cpu", values), "| ")[1:]
    assert [line[0] for line in lines] == list(cells.ATTACKS)
    assert lines[-1][1].startswith("12.3 / ")


def test_recipes_stand_side_by_side():
    rng = np.random.default_rng(0)
    published, fast = cell(rng, recipe="published"), cell(rng, recipe="fast")
    published["training"], fast["training"] = ({"epochs": e, "seconds": s} for e, s in ((100, 2411.6), (12, 199.9)))
    published["metrics"]["victim"] |= {"acc": 0.9, "asr": 0.95}
    fast["metrics"]["victim"] |= {"acc": 0.8, "asr": 0.99}
    alone = cell(rng, "none", recipe="published", training=None)
    alone["metrics"]["victim"]["acc"] = 0.91
    text = table("recipes", [fast, published, alone])
    assert text.splitlines()[2:] == [
        "| cifar10 | preact_resnet10-w16 | none | - | - | 91.0 / - | - | - | - |",
        "| cifar10 | preact_resnet10-w16 | badnets | 100 | 2412 | 90.0 / 95.0 | 12 | 200 | 80.0 / 99.0 |",
    ]


@pytest.mark.parametrize("name", [name for name in TABLES if name not in {*MADE, *COMPUTED} or name == "loops"])
def test_null_is_a_hyphen(name):
    values = example_rows(name, np.random.default_rng(0))
    for row in values:
        for measured in row.keys() & {"metrics", "oracle", "trigger", "training", "milliseconds_per_step"}:
            row[measured] = None
    lines = table(name, values).splitlines()
    assert all(set(numbers(line)) <= {"0", "1", "2"} for line in lines if line.startswith("|"))  # seeds
    assert "None" not in "".join(lines)
    assert "*-*" not in "".join(lines)


def test_correlations_that_are_not_defined_and_plans_that_stopped():
    row = correlated(np.random.default_rng(0), 8)
    row["with_poison"]["clean"]["last"] = dict.fromkeys(("pearson", "spearman", "overlap"))
    assert lines_of(table("correlation", [row]), "| digits")[0][-1] == "-"
    again = correlated(np.random.default_rng(1), 8)
    assert table("correlation", [row, again]) == table("correlation", [again])  # the latest counts
    plans = transported(np.random.default_rng(0), 1)
    lines = lines_of(table("transport", [plans]), "| preact")
    assert [line[6].endswith(" (stopped)") for line in lines[:2]] == [False, True]
    assert lines[2][3] == "0.1"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("digits", "metrics.pruned.asr"),
        ("digits", "oracle"),
        ("torch_victims", "file"),
        ("loops", "milliseconds_per_step.scan"),
        ("bench_cpu", "cell"),
        ("bench_cpu", "trigger.ssim"),
        ("bench_cpu", "metrics.fused.der"),
        ("bench_paper", "oracle.gamma"),
        ("recipes", "training.epochs"),
    ],
)
def test_a_missing_field_is_named_with_its_line(name, path):
    values = example_rows(name, np.random.default_rng(0))
    *holders, last = path.split(".")
    holder = values[0]
    for part in holders:
        holder = holder[part]
    del holder[last]
    with pytest.raises(InputError, match=rf"^1: expected a field {path}, found none$"):
        table(name, values)


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("bench_cpu", "attack", "badnet", "1: attack: expected one of .*'badnets'.*, found 'badnet'"),
        ("bench_cpu", "seed", True, "1: seed: expected a whole number, found True"),
        ("bench_cpu", "network", 10, "1: network: expected a string, found 10"),
        ("recipes", "recipe", "slow", "1: recipe: expected one of .*'published', 'fast'.*, found 'slow'"),
        ("digits", "metrics", {"victim": {"acc": "high", "asr": 1}}, "expected a finite number or null, found 'high'"),
        ("digits", "metrics", {"victim": {"acc": True, "asr": 1}}, "expected a finite number or null, found True"),
        ("digits", "metrics", {"victim": {"acc": 1e999, "asr": 1}}, "expected a finite number or null, found inf"),
    ],
)
def test_values_of_the_wrong_kind(name, field, value, message):
    values = example_rows(name, np.random.default_rng(0))
    values[0][field] = value
    with pytest.raises(InputError, match=message):
        table(name, values)


def test_an_unknown_table():
    with pytest.raises(InputError, match=r"table: expected one of \['digits', .*, found 'digit'"):
        markdown("digit", rows(example_rows("digits", np.random.default_rng(0))))


def test_text_cannot_break_a_table():
    values = example_rows("torch_victims", np.random.default_rng(0))
    values[0]["file"] = "a|b\nc.pt"
    assert r"| `a\|b c.pt` |" in table("torch_victims", values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"seed": 0}\n{"seed": ', r"file.jsonl:2: expected a JSON object, found a broken line \(Expecting value"),
        ("\n[1, 2]\n", r"file.jsonl:2: expected a JSON object, found \[1, 2\]"),
        ('{"acc": NaN}', r"file.jsonl:1: .*NaN is no JSON"),
        ("\n\n", "file.jsonl: expected rows, found none"),
    ],
)
def test_broken_lines(text, message):
    with pytest.raises(InputError, match=message):
        parse(text, name="file.jsonl")


def test_a_line_ends_where_json_lines_end():
    assert [row.values for row in parse('{"a": "x\u2028y"}\n\n{"a": 1}\n', name="f")] == [{"a": "x\u2028y"}, {"a": 1}]


def test_blocks_are_filled_and_nothing_else_moves():
    parts = blocks.find(PAGE, name="page", known=TABLES)
    assert [(block.name, block.line, block.body) for block in parts] == [("digits", 3, ()), ("loops", 8, ("old",))]
    filled = blocks.fill(PAGE, dict(zip(parts, ("one\ntwo", "three"), strict=True)))
    assert filled == PAGE.replace("digits -->\n", "digits -->\none\ntwo\n").replace("old", "three")
    again = blocks.find(filled, name="page", known=TABLES)
    assert blocks.fill(filled, {block: "\n".join(block.body) for block in again}) == filled


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("text", r"page: expected a block <!-- table: NAME --> ... <!-- end -->, found none"),
        ("<!-- table: digit -->\n<!-- end -->", r"page:1: expected a table of \[.*\], found 'digit'"),
        ("\n<!-- table: digits -->\ntext", "page:2: expected <!-- end --> after the table 'digits', found none"),
        (
            "<!-- table: digits -->\n<!-- table: loops -->\n<!-- end -->",
            "page:1: expected <!-- end --> after the table",
        ),
    ],
)
def test_bad_pages(page, message):
    with pytest.raises(InputError, match=message):
        blocks.find(page, name="page", known=TABLES)


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def work(tmp_path):
    """A page and results: (flags, page, folder of results)."""
    page, results = tmp_path / "PAGE.md", tmp_path / "results"
    results.mkdir()
    page.write_text(PAGE)
    for name in ("digits", "loops"):
        values = example_rows(name, np.random.default_rng(0))
        (results / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in values))
    return (f"--pages={page}", f"--results={results}"), page, results


def test_readme_says_what_the_rows_say():
    done = launch("tables", "--check")
    assert done.returncode == 0, done.stderr


def test_check_write_check(work):
    flags, page, results = work
    done = launch("tables", *flags, "--check")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {page}:3: expected the table 'digits' as its rows say, found another; ")
    assert len(done.stderr.splitlines()) == 1
    assert page.read_text() == PAGE
    assert launch("tables", *flags).stdout == f"{page}: 2 tables, 2 rewritten\n"
    assert launch("tables", *flags, "--check").returncode == 0
    assert markdown("loops", parse((results / "loops.jsonl").read_text(), name="")) in page.read_text()
    assert sorted(path.name for path in page.parent.iterdir()) == ["PAGE.md", "results"]


def test_print_needs_no_page(work):
    flags, page, results = work
    page.unlink()
    done = launch("tables", *flags, "--print=loops")
    assert done.stdout == markdown("loops", parse((results / "loops.jsonl").read_text(), name="")) + "\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--print=digit",), "flag --print=digit: value should be one of <digits|"),
        (("--print=recipes",), "--results: expected a file at "),
        (("--pages=nowhere.md",), "--pages: expected a file at nowhere.md, found none to read"),
        (("--results=nowhere",), "nowhere/digits.jsonl, found none to read"),
    ],
)
def test_bad_commands_end_in_one_clear_line(work, flags, message):
    done = launch("tables", *work[0], *flags)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert work[1].read_text() == PAGE


def test_a_broken_row_changes_no_page(work):
    flags, page, results = work
    with open(results / "loops.jsonl", "a") as file:
        file.write("{")
    done = launch("tables", *flags)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {results}/loops.jsonl:3: expected a JSON object, found a broken line")
    assert page.read_text() == PAGE


def test_the_evidence_about_the_attackers_class():
    row = defended(np.random.default_rng(0), 1)
    row |= {"attack": "adaptive_reach", "defense": "disarm", "config": {"attack": {"target": 2}}}
    row["detection"] = {
        "trigger_size": {"patch": [0.4, 0.4, 0.1, 0.8], "wave": [1.0, 1.0, 0.2, 1.0]},
        "maximum_margin": [2.0, 2.0, 3.0, 2.0],
        "class_bias": [0.1, 0.2, 0.4, 0.3],
    }
    row["verdict"] = {"backdoored": "yes", "suspect": 2, "scores": [0.0, 0.5, 2.5, 0.1]}
    text = table("bench_adaptive.evidence", [row])
    assert text.splitlines()[-1] == "| adaptive_reach | 0.25 | wave, 0.20 | 1.50 | 40 | 2.50 | yes |"
