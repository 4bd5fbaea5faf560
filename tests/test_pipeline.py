"""The whole loop on a tiny network: train, unlearn, score, prune, fuse, measure, report."""

import dataclasses
import json
import logging
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import OTBR as CONFIG
from tiny_runs import digests, resumed, run

from otbr_jax import InputError, UnlearningConfig
from otbr_jax.attacks.badnets import BadNetsConfig
from otbr_jax.attacks.registry import AttackConfig
from otbr_jax.contrib.otbr_plus import SweepConfig
from otbr_jax.data.sources import DataConfig
from otbr_jax.runs.checkpoints import save_checkpoint
from otbr_jax.runs.orbax_folder import load_variables
from otbr_jax.settings import change
from otbr_jax.studies.outputs import replacement_warning
from otbr_jax.studies.results import summarize
from otbr_jax.types import named_leaves, replace_leaves

STAGES = ("victim", "unlearned", "scores", "pruned", "fused", "evaluation")
NO_SWEEP = SweepConfig(gamma=())


def copy(workdir, to):
    shutil.copytree(workdir, to)
    return to


def numbers(summary):
    return {name: summary[name] for name in ("metrics", "choice", "oracle", "sweep", "neurons", "transport")}


def test_the_victim_is_backdoored_and_the_repair_changes_it(otbr_run):
    _, result, summary = otbr_run
    assert summary["metrics"]["victim"]["acc"] > 0.9
    assert summary["metrics"]["victim"]["asr"] > 0.9
    assert summary["metrics"]["fused"] != summary["metrics"]["victim"]
    assert summary["choice"] == {"gamma": 0.2, "lambda": 0.5, "chosen_by": "config"}
    assert summary["neurons"]["pruned"] == int(0.2 * summary["neurons"]["scored"])
    assert summary["transport"]["converged"]
    settings = {(row["gamma"], row["lambda"]): row for row in summary["sweep"]}
    assert list(settings) == [(0.05, 0.5), (0.05, 1.0), (0.2, 0.5), (0.2, 1.0)]
    assert all(row["converged"] for row in summary["sweep"])
    # The grid's row of the chosen setting is the chosen network's row.
    assert settings[0.2, 0.5]["fused"] == summary["metrics"]["fused"]
    assert settings[0.2, 0.5]["pruned"] == summary["metrics"]["pruned"]
    assert "oracle" in summary["oracle"]["chosen_by"]
    assert not resumed(result)


def test_what_a_user_leaves_with(otbr_run):
    workdir, result, summary = otbr_run
    assert json.loads((workdir / "metrics.json").read_text()) == summary
    assert set(summary["stages"]) == set(STAGES)
    assert all(stage["seconds"] >= 0 for stage in summary["stages"].values())
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), result.variables)
    saved = load_variables(workdir / "repaired", like, name="repaired")
    jax.tree.map(np.testing.assert_array_equal, saved, result.variables)
    rows = [line.split(",") for line in (workdir / "neuron_scores.csv").read_text().splitlines()]
    assert rows[0] == ["layer", "neuron", "score", "rank", "pruned"]
    assert len(rows) - 1 == summary["neurons"]["scored"]
    exact = {(layer, int(neuron)): np.float32(score) for layer, neuron, score, *_ in rows[1:]}
    for name, values in result.stages["scores"].value.items():
        assert all(exact[name, i] == value for i, value in enumerate(values))
    assert sum(int(row[4]) for row in rows[1:]) == summary["neurons"]["pruned"]
    page = (workdir / "report.html").read_text()
    assert page.count("<img") == 5
    assert "http://" not in page
    assert "https://" not in page
    assert 'src="data:image/png;base64,' in page


def test_the_results_of_another_defence_are_replaced_with_a_word(otbr_run, tmp_path):
    workdir, _, _ = otbr_run
    assert replacement_warning(workdir, "otbr") == replacement_warning(tmp_path, "otbr") == ""
    assert "the results of otbr will be replaced" in replacement_warning(workdir, "clp")


def test_a_second_run_reloads_everything_and_says_the_same(otbr_run, tmp_path):
    workdir, first, summary = otbr_run
    again = run(copy(workdir, tmp_path / "w"))
    assert resumed(again) == set(STAGES)
    assert digests(again) == digests(first)
    assert numbers(summarize(again)) == numbers(summary)


@pytest.mark.slow
def test_progress_bars_change_no_number(otbr_run, tmp_path, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "0")
    monkeypatch.setenv("OTBR_JAX_BARS", "parts")  # compiled with callbacks that report the parts of steps
    workdir, first, _ = otbr_run
    workdir = copy(workdir, tmp_path / "w")
    reporting = {"unlearned", "evaluation"}
    for name in reporting:
        (folder,) = (workdir / "stages").glob(f"{name}-*")
        shutil.rmtree(folder)
    shown = run(workdir)
    assert resumed(shown) == set(STAGES) - reporting
    assert digests(shown) == digests(first)


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (
            lambda c: change(c, sweep=NO_SWEEP),
            {"victim", "unlearned", "scores", "pruned", "fused"},
        ),
        (
            lambda c: change(c, otbr=dataclasses.replace(c.method.otbr, gamma=0.1), sweep=NO_SWEEP),
            {"victim", "unlearned", "scores"},
        ),
        pytest.param(
            lambda c: change(
                c,
                otbr=dataclasses.replace(c.method.otbr, unlearning=UnlearningConfig(steps=2, batch_size=16)),
                sweep=NO_SWEEP,
            ),
            {"victim"},
            marks=pytest.mark.slow,
        ),
        # The attack's trigger trains another victim.
        pytest.param(
            lambda c: change(c, attack=AttackConfig(badnets=BadNetsConfig(size=1)), sweep=NO_SWEEP),
            set(),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["sweep", "gamma", "unlearning", "attack"],
)
def test_a_changed_config_runs_exactly_the_stages_it_touches(otbr_run, tmp_path, change, kept):
    workdir, _, _ = otbr_run
    result = run(copy(workdir, tmp_path / "w"), change(CONFIG))
    assert resumed(result) == kept


def test_a_damaged_stage_is_rebuilt_and_its_children_are_kept(otbr_run, tmp_path, caplog):
    workdir, first, _ = otbr_run
    workdir = copy(workdir, tmp_path / "w")
    (folder,) = (workdir / "stages").glob("unlearned-*")
    shutil.rmtree(folder / "arrays")
    with caplog.at_level(logging.WARNING):
        result = run(workdir)
    assert "stage 'unlearned' is damaged and will be rebuilt" in caplog.text
    assert resumed(result) == set(STAGES) - {"unlearned"}
    assert digests(result) == digests(first)


def test_eight_devices_agree_with_one(otbr_run, tmp_path):
    _, one, _ = otbr_run
    workdir = tmp_path / "w"
    # The same victim, so that what is compared is the repair.
    checkpoint = tmp_path / "checkpoint"
    save_checkpoint(checkpoint, one.stages["victim"].value["variables"])
    model = dataclasses.replace(CONFIG.victim.model, checkpoint=str(checkpoint))
    config = change(CONFIG, model=model, sweep=NO_SWEEP)
    eight = run(workdir, config, devices=8)
    for name, scores in one.stages["scores"].value.items():
        np.testing.assert_allclose(eight.stages["scores"].value[name], scores, rtol=1e-3)
        mask = one.stages["pruned"].value.info.pruned[name]
        np.testing.assert_array_equal(eight.stages["pruned"].value.info.pruned[name], mask)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), eight.variables, one.variables)
    for name, metrics in one.stages["evaluation"].value["metrics"].items():
        np.testing.assert_allclose(eight.stages["evaluation"].value["metrics"][name], metrics, atol=0.01)


def test_without_data_there_is_a_checkpoint_and_no_numbers(otbr_run, tmp_path):
    _, first, _ = otbr_run
    save_checkpoint(tmp_path / "c", first.stages["victim"].value["variables"])
    config = change(
        CONFIG,
        model=dataclasses.replace(CONFIG.victim.model, checkpoint=str(tmp_path / "c")),
        data=DataConfig(name="none"),
    )
    result = run(tmp_path / "w", config)
    summary = summarize(result)
    assert summary["metrics"] == dict.fromkeys(("victim", "unlearned", "pruned", "fused"))
    assert summary["oracle"] is None
    # Neither the data nor the training has a say in the repair.
    jax.tree.map(np.testing.assert_array_equal, result.variables, first.variables)
    page = (tmp_path / "w" / "report.html").read_text()
    assert "not known" in page
    assert page.count("<img") == 2


def test_an_unknown_trigger_leaves_asr_open(otbr_run, tmp_path):
    _, first, _ = otbr_run
    save_checkpoint(tmp_path / "c", first.stages["victim"].value["variables"])
    model = dataclasses.replace(CONFIG.victim.model, checkpoint=str(tmp_path / "c"))
    result = run(tmp_path / "w", change(CONFIG, model=model, attack=AttackConfig(name="none")))
    summary = summarize(result)
    assert 0 < summary["metrics"]["fused"]["acc"] < 1
    assert summary["metrics"]["fused"]["asr"] is None
    assert summary["oracle"] is None


KILLED = """
import sys, jax
sys.path.insert(0, {tests!r})
from tiny_runs import run
run({workdir!r})
"""


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(otbr_run, tmp_path):
    """kill -9 as soon as a stage appears; the next process goes on from there, to the same numbers."""
    _, first, summary = otbr_run
    workdir = tmp_path / "w"
    code = KILLED.format(tests=str(pathlib.Path(__file__).parent), workdir=str(workdir))
    for stage in ("victim", "scores"):
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        while not any(p.suffix != ".partial" for p in (workdir / "stages").glob(f"{stage}-*")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    result = run(workdir)
    assert {"victim"} <= resumed(result)
    assert digests(result) == digests(first)
    assert numbers(summarize(result)) == numbers(summary)


def bad(config, message, tmp_path):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "w", config)
    assert not (tmp_path / "w").exists()


def test_bad_input_is_refused_before_anything_is_written(otbr_run, tmp_path):
    _, first, _ = otbr_run
    victim = first.stages["victim"].value["variables"]
    checkpoint = tmp_path / "c"
    save_checkpoint(checkpoint, victim)

    def model(**changes):
        return change(CONFIG, model=dataclasses.replace(CONFIG.victim.model, **changes))

    bad(
        model(checkpoint="/nowhere"),
        r"model.checkpoint: expected an Orbax checkpoint directory, or a PyTorch or safetensors file, found nothing",
        tmp_path,
    )
    bad(model(num_classes=7), r"data 'digits': expected labels in 0..6", tmp_path)
    classes = change(model(checkpoint=str(checkpoint), num_classes=12), data=DataConfig(name="none"))
    bad(classes, r"expected params/classifier/kernel of shape \(64, 12\) as the model's settings say, found \(64, 10\)"
        "|expected params/classifier/bias of shape", tmp_path)  # fmt: skip
    bad(
        model(checkpoint=str(checkpoint), image_shape=(8, 8, 3)),
        r"expected params/features.0/kernel of shape",
        tmp_path,
    )
    bad(
        change(CONFIG, data=DataConfig(name="none")),
        "model.checkpoint: expected a checkpoint, since",
        tmp_path,
    )
    name = "params/features.4/kernel"
    broken = replace_leaves(victim, {name: jnp.asarray(named_leaves(victim)[name]).at[0].set(jnp.nan)})
    save_checkpoint(tmp_path / "nan", broken)
    bad(model(checkpoint=str(tmp_path / "nan")), f"expected finite weights, found .* in {name}", tmp_path)


def test_a_layer_without_weight_change_is_named(otbr_run, tmp_path):
    """A dead layer: nothing reaches its kernel's gradient."""
    _, first, _ = otbr_run
    victim = first.stages["victim"].value["variables"]
    dead = {
        "params/features.9/scale": np.zeros(32, np.float32),
        "params/features.9/bias": np.full(32, -1, np.float32),
    }
    save_checkpoint(tmp_path / "c", replace_leaves(victim, dead))
    model = dataclasses.replace(CONFIG.victim.model, checkpoint=str(tmp_path / "c"))
    config = change(CONFIG, model=model, data=DataConfig(name="none"))
    with pytest.raises(InputError, match=r"scores of params/.*kernel: expected a neuron whose weights"):
        run(tmp_path / "w", config)


def test_a_batch_the_devices_cannot_share(tmp_path):
    otbr = dataclasses.replace(CONFIG.method.otbr, unlearning=UnlearningConfig(batch_size=12))
    with pytest.raises(InputError, match=r"unlearning.batch_size: expected a multiple of the 8 devices"):
        run(tmp_path / "w", change(CONFIG, otbr=otbr), devices=8)
