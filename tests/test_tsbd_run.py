"""TSBD from a suspicious network to a report, on a tiny network: stages, choice of n, resuming, clean images."""

import dataclasses
import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny_runs import TSBD as CONFIG
from tiny_runs import resumed, run

from otbr_jax import InputError
from otbr_jax.contrib.pruning_detection import PruningDetectionConfig
from otbr_jax.data.clean import CleanConfig, load_clean
from otbr_jax.data.sources import DataConfig, Dataset, Images
from otbr_jax.defenses import tsbd
from otbr_jax.defenses.otbr import Unlearned
from otbr_jax.defenses.tsbd import SweepConfig, TSBDConfig
from otbr_jax.defenses.tuning import Tuned, check_tuned
from otbr_jax.defenses.unlearning import check_clean_unlearning
from otbr_jax.inversion import PenalisedConfig
from otbr_jax.report.summary import summary_table
from otbr_jax.runs import loop
from otbr_jax.runs.checkpoints import save_checkpoint
from otbr_jax.settings import change
from otbr_jax.steps.finetune import FinetuningConfig
from otbr_jax.steps.sampling import split_folds
from otbr_jax.steps.select import SelectionConfig, choose_within_tolerance
from otbr_jax.steps.unlearn import CleanUnlearningConfig, CleanUnlearningInfo
from otbr_jax.studies.results import summarize

STAGES = {"victim", "unlearned", "scores", "selected", "reinitialized", "finetuned", "evaluation"}


def test_what_a_run_leaves(tsbd_run):
    workdir, result, summary = tsbd_run
    assert set(result.stages) == STAGES
    assert json.loads((workdir / "metrics.json").read_text()) == summary
    assert set(summary["metrics"]) == {"victim", "unlearned", "reinitialized", "finetuned"}
    assert summary["unlearning"]["reached_chance"]
    assert summary["clean"] == "65 clean images of the training set, 5 % of 1,297 training images"
    # What was chosen is what was done, and the grid's row of it is the repaired network's.
    assert [(row["n"], row["m"]) for row in summary["selection"]] == [(0.1, 0.5), (0.1, 1), (0.4, 0.5), (0.4, 1)]
    assert [(row["n"], row["m"]) for row in summary["sweep"]] == [(0.1, 0.5), (0.1, 1), (0.4, 0.5), (0.4, 1)]
    assert summary["choice"]["chosen_by"] == "held-out clean images"
    assert summary["neurons"]["reinitialized"] == int(summary["choice"]["n"] * summary["neurons"]["scored"])
    choice = {name: summary["choice"][name] for name in ("n", "m")}
    chosen = next(row for row in summary["sweep"] if choice.items() <= row.items())
    assert chosen["reinitialized"] == summary["metrics"]["reinitialized"]
    assert abs(chosen["finetuned"]["acc"] - summary["metrics"]["finetuned"]["acc"]) < 0.05
    page = (workdir / "report.html").read_text()
    assert page.count("<img") == 4
    assert "How n and m were chosen" in page
    assert "used 65 clean images" in page
    table = summary_table(summary).text()
    assert "repaired (after fine-tuning)" in table
    assert "oracle: best (n, m) of the grid" in table
    assert (workdir / "neuron_scores.csv").read_text().startswith("layer,neuron,score,rank,reinitialised\n")


@pytest.mark.slow
def test_clean_images_may_flag_no_class(tsbd_run, tmp_path):
    workdir, first, _ = tsbd_run
    shutil.copytree(workdir, tmp_path / "w")
    tiny = PenalisedConfig(steps=4, images=10)
    detection = PruningDetectionConfig(gamma=(0.1, 0.3), lam=(0.5,), patch=tiny, perturbation=tiny, threshold=9.0)
    config = change(CONFIG, detection=detection, sweep=SweepConfig())
    result = run(tmp_path / "w", config)
    summary = summarize(result)
    assert summary["choice"] == {"n": 0.0, "m": 0.0, "chosen_by": "no class flagged"}
    assert summary["selection"] is None
    assert {"predicted", "detected"} <= set(result.stages)
    assert summary["verdict"]["backdoored"] == "no"
    assert "(tsbd); p-value not known: no clean networks were scored by tsbd" in summary_table(summary).text()
    assert "trigger that was inverted for each class" in (tmp_path / "w" / "report.html").read_text()
    jax.tree.map(np.testing.assert_array_equal, result.variables, first.stages["victim"].value["variables"])
    # And with a class that is flagged everything goes on as without asking.
    suspected = change(config, detection=dataclasses.replace(detection, threshold=-9.0))
    again = run(tmp_path / "w", suspected)
    jax.tree.map(np.testing.assert_array_equal, again.variables, first.variables)


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (lambda c: c, STAGES),
        # Neither test images nor the trigger have a say in the repair.
        (lambda c: change(c, sweep=SweepConfig()), STAGES - {"evaluation"}),
        pytest.param(
            lambda c: change(c, selection=SelectionConfig(), sweep=SweepConfig()),
            {"victim", "unlearned", "scores"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda c: change(c, clean=CleanConfig(fraction=0.1), selection=SelectionConfig(), sweep=SweepConfig()),
            {"victim"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["nothing", "sweep", "no selection", "clean images"],
)
def test_exactly_what_a_change_touches_runs_again(tsbd_run, tmp_path, change, kept):
    workdir, first, _ = tsbd_run
    result = run(shutil.copytree(workdir, tmp_path / "w"), change(CONFIG))
    assert resumed(result) == kept
    if "finetuned" in kept:
        assert result.stages["finetuned"].digest == first.stages["finetuned"].digest


@pytest.mark.slow
def test_a_killed_finetuning_goes_on_inside_the_epochs_to_the_same_bits(tsbd_run, tmp_path, monkeypatch):
    workdir, first, _ = tsbd_run
    copy = shutil.copytree(workdir, tmp_path / "w")
    (folder,) = (copy / "stages").glob("finetuned-*")
    shutil.rmtree(folder)
    save, saved = loop.save_state, []

    def save_and_die(progress, state):
        save(progress, state)
        saved.append(int(state.progress.epochs))
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(loop, "save_state", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(copy, CONFIG)
    assert saved == [1, 2]
    monkeypatch.setattr(loop, "save_state", lambda progress, state: saved.append(int(state.progress.epochs)))
    again = run(copy, CONFIG)
    assert saved == [1, 2, 3]  # the third epoch was its first one
    assert again.stages["finetuned"].digest == first.stages["finetuned"].digest
    assert not list((copy / "progress").iterdir())


@pytest.mark.slow
def test_eight_devices_find_the_same_neurons(tsbd_run, tmp_path):
    _, one, _ = tsbd_run
    save_checkpoint(tmp_path / "c", one.stages["victim"].value["variables"])
    model = dataclasses.replace(CONFIG.victim.model, checkpoint=str(tmp_path / "c"))
    config = change(CONFIG, model=model, selection=SelectionConfig(), sweep=SweepConfig())
    eight = run(tmp_path / "w", config, devices=8)
    for name, scores in one.stages["scores"].value.items():
        np.testing.assert_allclose(eight.stages["scores"].value[name], scores, rtol=2e-2)
    assert np.isfinite(eight.stages["finetuned"].value.history["loss"]).all()


def test_the_largest_share_that_hardly_differs_from_the_best():
    accuracy = jnp.array([0.95, 0.99, 0.98, 0.97, 0.5])
    assert [int(choose_within_tolerance(accuracy, tolerance=tolerance)) for tolerance in (0.0, 0.015, 0.025, 1.0)] == [
        1,
        2,
        3,
        4,
    ]


@pytest.mark.parametrize(
    ("message", "values"),
    [
        (r"selection.m: expected a list of numbers in \[0, 1\], found 1.5 among them", {"n": (0.1,), "m": (0.5, 1.5)}),
        (r"selection.tolerance: expected a number in \[0, 1\], found nan", {"tolerance": float("nan")}),
        (r"selection.folds: expected 1..4, found 5", {"folds": 5}),
        (r"selection.n: expected shares of neurons beside selection.m \[0.5\], found none", {"m": (0.5,)}),
    ],
)
def test_bad_choices(message, values):
    with pytest.raises(InputError, match=message):
        SelectionConfig(**values)


def test_whole_neurons_have_one_share():
    neurons = change(CONFIG.method, tsbd=dataclasses.replace(CONFIG.method.tsbd, scheme="neurons"))
    assert neurons.pairs(neurons.selection) == ((0.1, 1.0), (0.4, 1.0))
    assert tsbd.chosen_setting(neurons, {}) == (0.15, 1.0)
    assert tsbd.chosen_setting(CONFIG.method, {}) == (0.15, 0.7)
    with pytest.raises(InputError, match=r"tsbd.scheme: expected one of \['weights', 'neurons'\], found 'filters'"):
        TSBDConfig(scheme="filters")


def test_folds_hold_every_image_out_at_most_once():
    labels = np.repeat(np.arange(5), 8)
    fit, held = split_folds(labels, held_out=0.25, folds=4, seed=0)
    assert held.shape == (4, 10)
    assert sorted(held.ravel()) == list(range(40))
    for one, other in zip(fit, held, strict=True):
        assert sorted([*one, *other]) == list(range(40))
        assert np.bincount(labels[other]).tolist() == [2] * 5
    with pytest.raises(InputError, match="selection.held_out: expected a share that 1 times fits into 3 images"):
        split_folds(labels[:3], held_out=0.1, folds=1, seed=0)


def clean(config, dataset=None, classes=2, shape=(4, 4, 1)):
    return load_clean(config, dataset, image_shape=shape, num_classes=classes, seed=0)


def training_set(count=100, classes=2):
    images = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 1)).astype(np.uint8)
    part = Images(images, np.arange(count, dtype=np.int32) % classes)
    return Dataset(part, part, "noise")


def test_a_share_of_the_training_set_has_every_class():
    data = training_set()
    found = clean(CleanConfig(fraction=0.1), data)
    assert found.images.images.shape == (10, 4, 4, 1)
    assert np.bincount(found.images.labels).tolist() == [5, 5]
    others = load_clean(CleanConfig(fraction=0.1), data, image_shape=(4, 4, 1), num_classes=2, seed=1)
    assert not np.array_equal(others.images.images, found.images.images)


def test_images_of_ones_own(tmp_path):
    pixels = np.arange(4 * 16, dtype=np.uint8).reshape(4, 4, 4, 1) * 3
    for label in (0, 1):
        folder = tmp_path / "own" / f"class{label}"
        folder.mkdir(parents=True)
        for index in (0, 1):
            Image.fromarray(pixels[2 * label + index, ..., 0]).save(folder / f"{index}.png")
    found = clean(CleanConfig(name="folder", path=str(tmp_path / "own"), fraction=0.1))
    np.testing.assert_array_equal(found.images.images, pixels)  # whole, whatever the fraction
    assert found.images.labels.tolist() == [0, 0, 1, 1]
    np.savez(tmp_path / "own.npz", images=pixels, labels=np.array([0, 1, 1, 0]))
    found = clean(CleanConfig(name="npz", path=str(tmp_path / "own.npz")))
    np.testing.assert_array_equal(found.images.images, pixels)
    digits = load_clean(CleanConfig(name="digits"), None, image_shape=(8, 8, 1), num_classes=10, seed=0)
    assert len(digits.images.labels) == 65


def test_bad_clean_images(tmp_path):
    def refuse(message, config=None, **arrays):
        if arrays:
            np.savez(tmp_path / "x.npz", **arrays)
            config = CleanConfig(name="npz", path=str(tmp_path / "x.npz"))
        with pytest.raises(InputError, match=message):
            clean(config)

    pixels, labels = np.full((4, 4, 4, 1), 200, np.uint8), np.array([0, 1, 0, 1])
    refuse("expected some of each of 2 classes, found none of class 1", images=pixels, labels=labels * 0)
    refuse(r"expected labels in 0..1 as model.num_classes says, found 0..2", images=pixels, labels=labels * 2)
    refuse(r"expected images of shape \(4, 4, 1\).*found \(5, 4, 1\)", images=pixels.repeat(2, 1)[:, :5], labels=labels)
    refuse(r"expected uint8 in 0..255, found at most 1: were they scaled", images=pixels // 200, labels=labels)
    refuse(r"expected 'images' as uint8 \[n, h, w, c\], found float64", images=pixels - 0.5, labels=labels)
    refuse("clean.name: expected clean images of your own", CleanConfig())
    refuse("expected a folder of classes, found none", CleanConfig(name="folder", path=str(tmp_path / "nix")))
    with pytest.raises(InputError, match=r"clean.name: expected one of \['', .*, found 'nix'"):
        CleanConfig(name="nix")
    with pytest.raises(InputError, match=r"clean.fraction: expected a number in \(0, 1\], found 0"):
        CleanConfig(fraction=0)
    with pytest.raises(InputError, match="clean.fraction: expected at least one image, found 0.001 of 100"):
        clean(CleanConfig(fraction=0.001), training_set())


def test_bad_runs_end_before_anything_is_written(tmp_path):
    def refuse(message, **changes):
        with pytest.raises(InputError, match=message):
            run(tmp_path / "w", change(CONFIG, **changes))
        assert not (tmp_path / "w" / "stages").exists() or not list((tmp_path / "w" / "stages").glob("unlearned-*"))

    refuse(
        r"tsbd.unlearning.batch_size: expected at most 13, as many as there are clean images, found 32",
        clean=CleanConfig(fraction=0.01),
    )
    large = TSBDConfig(CleanUnlearningConfig(batch_size=32), finetuning=FinetuningConfig(batch_size=64))
    refuse(r"expected at most 49, as many as there are clean images \(65 but those held out to choose n\)", tsbd=large)
    refuse("model.checkpoint: expected a checkpoint", data=DataConfig(name="none"))


@pytest.mark.slow
def test_an_early_end_is_what_the_numbers_hold(tsbd_run, tmp_path):
    workdir, _, _ = tsbd_run
    tuning = dataclasses.replace(CONFIG.method.tsbd.finetuning, epochs=6, learning_rate=1.0, patience=1)
    config = change(
        CONFIG,
        tsbd=dataclasses.replace(CONFIG.method.tsbd, finetuning=tuning),
        selection=SelectionConfig(),
        sweep=SweepConfig(),
    )
    result = run(shutil.copytree(workdir, tmp_path / "w"), config)
    losses = summarize(result)["finetuning"]["loss"]
    assert 2 <= len(losses) < 6
    assert np.all(np.isfinite(losses))
    assert "NaN" not in (tmp_path / "w" / "metrics.json").read_text()


def test_a_loss_that_is_no_number_is_named():
    def refuse(stage, check, *arguments):
        with pytest.raises(InputError, match=rf"tsbd.{stage}.learning_rate: expected a finite loss, found .* lower it"):
            check(*arguments)

    losses, weights = np.array([2.0, np.inf, np.nan]), {"params": {"kernel": np.ones(3)}}
    diverged = CleanUnlearningInfo(losses, np.zeros(3), np.int32(2), np.bool_(False))
    unlearned_well = partial(check_clean_unlearning, name="tsbd.unlearning")
    refuse("unlearning", unlearned_well, CONFIG.method.tsbd.unlearning, Unlearned(weights, diverged))
    tuned_well = partial(check_tuned, name="tsbd.finetuning.learning_rate")
    refuse("finetuning", tuned_well, CONFIG.method.tsbd.finetuning, Tuned(weights, {"loss": losses}))
    lost = {"params": {"kernel": np.array([1.0, np.nan])}}
    refuse("finetuning", tuned_well, CONFIG.method.tsbd.finetuning, Tuned(lost, {"loss": np.array([2.0, np.nan])}))
    tuned_well(CONFIG.method.tsbd.finetuning, Tuned(weights, {"loss": np.array([2.0, np.nan])}))  # ended early


@pytest.mark.slow
def test_a_run_that_diverges_keeps_nothing_of_it(tsbd_run, tmp_path):
    copy = shutil.copytree(tsbd_run[0], tmp_path / "w")
    method = dataclasses.replace(CONFIG.method.tsbd, finetuning=FinetuningConfig(4, 32, learning_rate=1e30))
    before = {folder.name for folder in (copy / "stages").iterdir() if folder.name.startswith("finetuned")}
    with pytest.raises(InputError, match=r"tsbd.finetuning.learning_rate: expected a finite loss, found .* lower it"):
        run(copy, change(CONFIG, tsbd=method, selection=SelectionConfig()))
    assert {folder.name for folder in (copy / "stages").iterdir() if folder.name.startswith("finetuned")} == before
