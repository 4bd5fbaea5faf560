"""The leaderboard: what it says of rows, computed again by hand."""

import statistics

import numpy as np
import pytest

from otbr_jax.report.leaderboard import entries
from otbr_jax.report.results_tables import markdown
from otbr_jax.report.rows import Row


def row(defense, attack, acc, asr, *, run=0, before=(0.99, 1.0), **fields):
    clean = attack == "none"
    victim = {"acc": before[0], "asr": None if clean else before[1]}
    return {
        "cell": f"digits/a/{attack}/{defense}/run{run}",
        **{"dataset": "digits", "network": "a", "recipe": "fast", "attack": attack, "seed": 0, "defense": defense},
        "metrics": {"victim": victim, "repaired": {"acc": acc, "asr": None if clean else asr}},
        "stage_cpu_seconds": {"victim": 50.0, "inverted": 2.0, "repaired": 1.5, "evaluation": 9.0, "relearning": 4.0},
        "stage_megabytes": {"victim": 900.0, "inverted": 7.0, "repaired": 12.0, "evaluation": 800.0},
        "repetition": run,
    } | fields


def of(*values):
    return entries([Row(str(number), value) for number, value in enumerate(values)])


def test_medians_are_over_networks_and_means_over_runs():
    asr = np.random.default_rng(0).random((3, 5))
    attacks = ("badnets", "blended", "trojan", "lf", "wanet")
    rows = [row("ft", name, 0.9, asr[run, place], run=run) for run in range(3) for place, name in enumerate(attacks)]
    (entry,) = of(*rows)
    medians = np.median(asr, axis=1)
    assert entry["asr"]["median"] == pytest.approx(medians.mean())
    assert entry["asr"]["spread"] == pytest.approx(statistics.stdev(medians))
    assert entry["asr"]["worst"] == asr.max()
    assert entry["left"] == [int((asr > 0.15).sum()), 15]
    assert entry["acc_lost"]["median"] == pytest.approx(0.09)
    assert (entry["networks"], entry["runs"], entry["seconds"], entry["megabytes"]) == (5, 3, 3.5, 12.0)


def test_a_run_that_is_not_complete_does_not_count_in_medians_but_in_the_worst():
    rows = [row("ft", name, 0.9, asr) for name, asr in (("badnets", 0.1), ("blended", 0.3))]
    (entry,) = of(*rows, row("ft", "badnets", 0.9, 0.8, run=1))
    assert entry["asr"] == {"median": pytest.approx(0.2), "spread": None, "worst": 0.8}


def test_clean_networks_and_victims_that_did_not_learn_are_no_backdoored_ones():
    rows = (row("ft", "none", 0.95, None), row("ft", "lf", 0.98, 0.0, before=(0.99, 0.05)))
    (entry,) = of(*rows, row("ft", "badnets", 0.9, 0.0))
    assert (entry["networks"], entry["left"]) == (1, [0, 1])
    assert entry["clean_lost"]["worst"] == pytest.approx(0.04)


def test_the_best_comes_first_and_an_oracle_behind_its_defence():
    oracle = {"threshold": 0.2, "repaired": {"acc": 0.99, "asr": 0.0}}
    curves = {"poisoned": {"asr": [0.1, 0.6, 0.8]}, "never": {"poisoned": {"asr": [0.0, 0.1, 0.3]}}}
    rows = row("anp", "badnets", 0.98, 0.9, oracle=oracle), row("ft", "badnets", 0.97, 0.1, relearning=curves)
    board = of(*rows)
    assert [(entry["defence"], entry["oracle"]) for entry in board] == [("ft", False), ("anp", False), ("anp", True)]
    assert board[2]["asr"]["median"] == 0.0
    assert board[0]["relearning"] == pytest.approx({"asr": 0.7, "never": 0.2})
    (left,) = of(row("ft", "badnets", 0.97, 0.5, relearning=curves))
    assert left["relearning"] is None  # a backdoor that was never removed is not relearned
    text = markdown("bench_leaderboard", [Row(str(number), value) for number, value in enumerate(rows)])
    assert "| anp, oracle | none | 1 | 1 | 0.0 | 0.0 | 0.0 | 0.0 | 0 of 1 |" in text
    assert "| 70 (20) |" in text


def test_data_that_a_defence_was_given_stands_in_its_line():
    (entry,) = of(row("ft", "badnets", 0.9, 0.1, clean="65 clean images", config={"clean": {"fraction": 0.05}}))
    assert entry["data"] == "5 % clean"
