"""How alike neurons move: the correlations themselves, and the whole study on a tiny network."""

import csv
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from tiny_runs import DEVICES, VICTIM

from otbr_jax import InputError
from otbr_jax.data.sources import DataConfig
from otbr_jax.report.correlation_page import correlation_table
from otbr_jax.steps.score import correlation, correlations
from otbr_jax.steps.unlearn import UnlearningConfig
from otbr_jax.studies.correlation import CORRELATION, CorrelationConfig, rows, summarize, victim_correlations
from otbr_jax.studies.study import run_study

CONFIG = CorrelationConfig(
    **VICTIM,
    unlearning=UnlearningConfig(steps=3, batch_size=16),
    attacks=("badnets", "blended"),
)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e-25])
def test_it_is_scipys(jit, scale):
    first, second = (scale * jax.random.exponential(jax.random.key(seed), (40,)) for seed in (0, 1))
    second = second.at[3].set(second[4])  # a tie
    found = (jax.jit(correlation) if jit else correlation)(first, second)
    a, b = (np.asarray(values, np.float64) for values in (first, second))
    np.testing.assert_allclose(found.pearson, scipy.stats.pearsonr(a, b).statistic, atol=1e-5)
    np.testing.assert_allclose(found.spearman, scipy.stats.spearmanr(a, b).statistic, atol=1e-5)
    top = [set(np.argsort(-values)[:4]) for values in (a, b)]
    np.testing.assert_allclose(found.overlap, len(top[0] & top[1]) / 4)


def test_what_does_not_matter_and_what_cannot_be_said():
    first, second = (jax.random.exponential(jax.random.key(seed), (30,)) for seed in (0, 1))
    order = np.random.default_rng(0).permutation(30)
    expected = correlation(first, second)
    for found in (correlation(second, first), correlation(5 * first[order], second[order])):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(correlation(first, first), [1, 1, 1], atol=1e-6)
    np.testing.assert_allclose(correlation(first, -first), [-1, -1, 0], atol=1e-6)
    assert np.isnan(correlation(first, jnp.ones(30)).pearson)
    alone = correlation(jnp.ones(1), jnp.ones(1))
    assert np.isnan(alone.pearson)
    assert alone.overlap == 1


def test_layers_and_all_neurons_together():
    scores = {"a": jnp.arange(4.0), "b": jnp.arange(3.0)}
    overall, by_layer = correlations(scores, {"a": jnp.arange(4.0), "b": -jnp.arange(3.0)})
    np.testing.assert_allclose([by_layer[name].pearson for name in scores], [1, -1], atol=1e-6)
    assert -1 < overall.pearson < 1
    with pytest.raises(InputError, match=r"scores: expected two of the same layers, found \['a', 'b'\] and \['a'\]"):
        correlations(scores, {"a": jnp.arange(4.0)})
    with pytest.raises(InputError, match=r"expected two of one shape \[n\], found \(4,\) and \(3,\)"):
        correlation(scores["a"], scores["b"])
    with pytest.raises(InputError, match=r"top: expected a share of neurons in \(0, 1\], found 0"):
        correlation(scores["a"], scores["a"], top=0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("correlation")
    return workdir, run_study(CORRELATION, CONFIG, workdir, devices=DEVICES)


@pytest.mark.slow
def test_a_study_of_two_attacks(finished):
    workdir, found = finished
    assert [one.config.attack.name for one in found] == ["badnets", "blended"]
    studies = [victim_correlations(CONFIG, one) for one in found]
    for study in studies:
        random, clean, poison = (np.concatenate(list(study.scores[kind].values())) for kind in study.scores)
        expected = [np.corrcoef(moved, poison)[0, 1] for moved in (random, clean)]
        np.testing.assert_allclose([study.pairs[kind][0].pearson for kind in ("random", "clean")], expected, atol=1e-4)
        assert not np.allclose(clean, poison)
    # Both victims are unlearned on the same noise, and are two victims.
    assert not np.allclose(*(np.concatenate(list(study.scores["random"].values())) for study in studies))
    summary = json.loads((workdir / "correlation.json").read_text())
    assert summary == summarize(CONFIG, found)
    assert list(summary[0]["with_poison"]["random"]["layers"]) == list(studies[0].scores["random"])
    table = list(csv.DictReader((workdir / "nwc.csv").read_text().splitlines()))
    assert len(table) == 2 * summary[0]["neurons"]
    value = studies[1].scores["poison"][table[-1]["layer"]][int(table[-1]["neuron"])]
    np.testing.assert_allclose(float(table[-1]["poison"]), value, rtol=1e-7)
    page = (workdir / "correlation.html").read_text()
    assert page.count("data:image/png") == 3
    assert "blended" in correlation_table(summary).text()


@pytest.mark.slow
def test_running_again_computes_nothing(finished):
    workdir, studies = finished
    before = {path: path.stat().st_mtime_ns for path in (workdir / "stages").rglob("*")}
    again = run_study(CORRELATION, CONFIG, workdir, devices=DEVICES)
    assert {path: path.stat().st_mtime_ns for path in (workdir / "stages").rglob("*")} == before
    assert summarize(CONFIG, again) == summarize(CONFIG, studies)


@pytest.mark.slow
def test_a_row_says_what_was_measured(finished):
    config = dataclasses.replace(CONFIG, data=DataConfig(data_dir="/somewhere"))
    found = rows(config, finished[1])
    assert [row["attack"] for row in found] == [row["config"]["attack"]["name"] for row in found]
    assert "/somewhere" not in json.dumps(found)
    assert {"dataset", "network", "seed", "with_poison", "victim", "data"} <= set(found[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"attacks": ("none",)},
            "attack.name: expected an attack, since poison unlearning needs its trigger, found 'none'",
        ),
        ({"top": 2.0}, r"top: expected a number in \(0, 1\], found 2.0"),
        ({"data": DataConfig("none")}, "data.name: expected images to study victims with, found 'none'"),
    ],
)
def test_bad_settings(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        run_study(CORRELATION, dataclasses.replace(CONFIG, **settings), tmp_path)
