"""The study of activeness on a tiny network."""

import csv
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import DEVICES, VICTIM

from otbr_jax import InputError, trace
from otbr_jax.data.sources import DataConfig
from otbr_jax.detectors.scores import DetectionScores
from otbr_jax.report import activeness_page
from otbr_jax.steps.activeness import activeness
from otbr_jax.steps.unlearn import UnlearningConfig, noise_batches
from otbr_jax.studies.activeness import (
    ACTIVENESS,
    ActivenessConfig,
    activeness_and_nwc,
    rows,
    summarize,
    victim_scores,
)
from otbr_jax.studies.study import run_study
from otbr_jax.types import named_leaves

CONFIG = ActivenessConfig(
    **VICTIM,
    unlearning=UnlearningConfig(steps=3, batch_size=16),
    attacks=("none", "badnets"),
    seeds=(5,),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("activeness")
    return workdir, run_study(ACTIVENESS, CONFIG, workdir, devices=DEVICES)


@pytest.mark.slow
def test_a_study_of_a_clean_and_a_backdoored_network(finished):
    workdir, found = finished
    assert [(one.config.attack.name, one.config.seed, len(one.inputs["clean"].labels)) for one in found] == [
        ("none", 5, 65),
        ("badnets", 5, 65),
    ]
    clean, backdoored = (np.concatenate(list(victim_scores(one).activeness.mean.values())) for one in found)
    assert not np.allclose(clean, backdoored)
    summary = json.loads((workdir / "activeness.json").read_text())
    assert summary == summarize(CONFIG, found)
    assert [one["victim"]["asr"] is None for one in summary["victims"]] == [True, False]
    assert (summary["clean"], summary["backdoored"]) == (1, 1)
    higher = [one["scores"]["average_activeness"] for one in summary["victims"]]
    assert summary["detection"]["average_activeness"]["auc"] == float(higher[1] > higher[0])
    table = list(csv.DictReader((workdir / "activeness.csv").read_text().splitlines()))
    assert len(table) == sum(one["neurons"] for one in summary["victims"])
    line, one = table[-1], victim_scores(found[-1])
    values = [part[line["layer"]][int(line["neuron"])] for part in (*one.activeness, one.nwc)]
    np.testing.assert_allclose([float(line[name]) for name in ("mean", "variance", "nwc")], values, rtol=1e-7)
    page = (workdir / "activeness.html").read_text()
    assert page.count("data:image/png") == 2
    text = activeness_page.activeness_table(summary).text()
    assert "AUC, 1 backdoored, 1 clean" in text
    assert len({len(row) for row in text.splitlines()[1:]}) == 1


@pytest.mark.slow
def test_it_is_the_cores_activeness_and_the_change_of_the_same_unlearning(tiny):
    network, variables = tiny
    layers = trace(network.apply, variables, jnp.zeros((1, 8, 8, 1))).main_convolutions
    arguments = (network, variables, noise_batches(network, batch_size=16), layers)
    options = {"key": jax.random.key(1), "config": UnlearningConfig(steps=2, learning_rate=0.01, momentum=0.0)}
    found, nwc = jax.jit(lambda: activeness_and_nwc(*arguments, **options))()
    expected, _ = jax.jit(lambda: activeness(*arguments, **options))()
    for layer in layers:
        for part in ("mean", "variance"):
            values = (getattr(one, part)[layer.name] for one in (found, expected))
            np.testing.assert_allclose(*values, rtol=1e-3, atol=1e-9)
        # Of plain ascent: no further than the gradients' L1 norms, of which the L2 norms say this much.
        weights = sum(leaf.size for name, leaf in named_leaves(variables).items() if name == layer.name)
        far = 0.01 * 2 * np.sqrt(weights / layer.neurons) * found.mean[layer.name]
        assert np.all(nwc[layer.name] <= 1.001 * far)
        assert np.all(nwc[layer.name] > 0.01 * far)


@pytest.mark.slow
def test_running_again_computes_nothing(finished):
    workdir, found = finished
    before = {path: path.stat().st_mtime_ns for path in (workdir / "stages").rglob("*")}
    again = run_study(ACTIVENESS, CONFIG, workdir, devices=DEVICES)
    assert {path: path.stat().st_mtime_ns for path in (workdir / "stages").rglob("*")} == before
    assert summarize(CONFIG, again) == summarize(CONFIG, found)


@pytest.mark.slow
def test_rows_say_what_was_measured(finished):
    config = dataclasses.replace(CONFIG, data=DataConfig(data_dir="/somewhere"))
    made = rows(config, finished[1])
    assert [row["attack"] for row in made] == ["none", "badnets", "all"]
    assert [row["config"]["seed"] for row in made[:2]] == [5, 5]
    assert made[0]["config"]["attack"] == {"name": "none"}
    assert set(made[-1]["auc"]) == set(DetectionScores._fields)
    assert made[-1]["config"]["seeds"] == [5]
    assert "/somewhere" not in json.dumps(made)
    assert {"dataset", "network", "scores", "layers", "victim", "data"} <= set(made[0])


@pytest.mark.slow
def test_networks_of_one_kind_have_no_auc(finished):
    summary = summarize(CONFIG, finished[1][1:])
    assert {curve["auc"] for curve in summary["detection"].values()} == {None}
    json.dumps(summary, allow_nan=False)
    page = activeness_page.render(summary, [victim_scores(finished[1][1]).activeness.mean])
    assert page.count("data:image/png") == 1
    assert "That takes networks of both kinds" in page


def test_a_checkpoint_is_one_victim_and_nothing_named_is_the_configs_own():
    own = dataclasses.replace(CONFIG, seed=3, model=dataclasses.replace(CONFIG.model, checkpoint="v.pt"))
    assert [(one.attack.name, one.seed) for one in own.each()] == [("badnets", 3)]
    bare = dataclasses.replace(CONFIG, seed=3, attacks=(), seeds=())
    assert [(one.attack.name, one.seed) for one in bare.each()] == [("badnets", 3)]
    many = dataclasses.replace(CONFIG, seeds=(0, 1))
    assert len({(one.attack.name, one.seed) for one in many.each()}) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 0.0}, r"fraction: expected a number in \(0, 1\], found 0.0"),
        ({"fraction": 1e-6}, "fraction: expected at least one of the 1297 images, found none at 1e-06"),
        ({"attacks": ("none", "badnet")}, "attacks: expected a list of any of .*, found 'badnet' among them"),
        ({"seeds": (1, 1)}, r"seeds: expected each once, found \(1, 1\)"),
        ({"seeds": (-1,)}, r"seeds: expected a list of whole numbers in \[0, 2\*\*32\), found -1 among them"),
        ({"data": DataConfig("none")}, "data.name: expected images to study victims with, found 'none'"),
    ],
)
def test_bad_settings(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        run_study(ACTIVENESS, dataclasses.replace(CONFIG, **settings), tmp_path, devices=DEVICES)
