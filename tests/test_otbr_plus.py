"""OTBR that chooses without data: detection, an unchanged network, fine-tuning on inverted triggers, resuming."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_pipeline import CONFIG, run

from otbr_jax import Batch, InputError, OTBRSettings, otbr_plus
from otbr_jax.contrib.images import SyntheticConfig
from otbr_jax.contrib.otbr_plus import SweepConfig
from otbr_jax.contrib.pruning_detection import PruningDetectionConfig
from otbr_jax.contrib.trigger_finetuning import TriggerFinetuningConfig, choose_share, finetune_class, finetune_classes
from otbr_jax.inversion import PenalisedConfig
from otbr_jax.models.registry import ModelConfig
from otbr_jax.report.summary import summary_table
from otbr_jax.settings import change
from otbr_jax.steps.finetune import FinetuningConfig
from otbr_jax.studies.inspection import inspect
from otbr_jax.studies.repair_config import repaired_by
from otbr_jax.studies.results import summarize
from otbr_jax.types import split
from otbr_jax.victims.training import TrainingConfig

TINY = PenalisedConfig(steps=4, images=20)
SYNTHETIC = SyntheticConfig(images=40, steps=4)
TRIGGER_FINETUNING = TriggerFinetuningConfig(
    triggers=2,
    rounds=2,
    relearnings=1,
    relearned=9,
    patch=TINY,
    perturbation=TINY,
    finetuning=FinetuningConfig(epochs=1, batch_size=20),
)
PLUS = change(
    CONFIG,
    model=ModelConfig("vgg7_bn", width=4, depth=(1, 1, 1, 1), image_shape=(8, 8, 1)),
    training=TrainingConfig(epochs=1),
    sweep=SweepConfig(gamma=()),
    detection=PruningDetectionConfig(
        gamma=(0.1, 0.3),
        lam=(0.5, 1.0),
        synthetic=SYNTHETIC,
        patch=TINY,
        perturbation=TINY,
        threshold=-9.0,
    ),
    trigger_finetuning=TRIGGER_FINETUNING,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(working directory, result, summary) of a run in which some class is always flagged."""
    workdir = tmp_path_factory.mktemp("plus") / "w"
    result = run(workdir, PLUS)
    return workdir, result, summarize(result)


@pytest.mark.slow
def test_a_suspicious_network_is_flagged_fused_and_finetuned(finished):
    workdir, _, summary = finished
    verdict, settings = summary["verdict"], summary["detection"]["settings"]
    assert (verdict["detector"], verdict["backdoored"]) == ("otbr_plus", "yes")
    assert verdict["suspect"] == int(np.argmax(verdict["scores"]))
    assert {*summary["detection"]["trigger_size"]} == {"patch", "perturbation"}
    assert {(row["gamma"], row["lambda"]) for row in settings} == {
        (0.1, 0.5), (0.1, 1.0), (0.3, 0.5), (0.3, 1.0)
    }  # fmt: skip
    assert (summary["choice"]["gamma"], summary["choice"]["lambda"]) in {
        (row["gamma"], row["lambda"]) for row in settings
    }
    assert [*summary["metrics"]] == ["victim", "unlearned", "pruned", "fused", "trigger_finetuned"]
    assert [row["class"] for row in summary["trigger_finetuned"]] == [*np.argsort(verdict["scores"])[:-3:-1]]
    assert all(
        share in TRIGGER_FINETUNING.shares
        for f in summary["trigger_finetuned"]
        for share in (f["share"], *f["relearned"])
    )
    table = summary_table(summary).text()
    assert f"class {verdict['suspect']} is flagged" in table
    assert "p-value not known: clean networks were scored with other settings" in table
    assert "of the way" in table
    page = (workdir / "report.html").read_text()
    assert "Is it backdoored?" in page
    assert page.count("other triggers turn") == 2
    assert json.loads((workdir / "metrics.json").read_text())["verdict"] == verdict


@pytest.mark.slow
def test_a_second_run_reloads_everything(finished):
    workdir, first, _ = finished
    again = run(workdir, PLUS)
    assert all(stage.resumed for stage in again.stages.values())
    jax.tree.map(np.testing.assert_array_equal, again.variables, first.variables)


@pytest.mark.slow
def test_where_no_class_is_flagged_the_network_stays_as_it_is(finished):
    workdir, first, _ = finished
    unflagged = change(PLUS, detection=dataclasses.replace(PLUS.method.detection, threshold=2.0))
    result = run(workdir, unflagged)
    summary = summarize(result)
    assert summary["choice"] == {"gamma": 0.0, "lambda": 0.0, "chosen_by": "no class flagged"}
    assert summary["trigger_finetuned"] is None
    assert "no class is flagged" in summary_table(summary).text()
    victim = first.stages["victim"].value["variables"]
    jax.tree.map(np.testing.assert_array_equal, result.variables, victim)
    assert result.stages["inverted"].resumed


@pytest.mark.slow
def test_inspecting_asks_without_a_repair(finished, tmp_path):
    workdir, _, _ = finished
    config = change(
        PLUS,
        model=dataclasses.replace(PLUS.victim.model, checkpoint=str(workdir / "repaired")),
        data=dataclasses.replace(PLUS.victim.data, name="none"),
    )
    said = inspect(config, detect_in=tmp_path / "asked")
    assert "is flagged" in said
    assert (tmp_path / "asked" / "triggers.png").stat().st_size > 0
    with pytest.raises(InputError, match=r"model.checkpoint: expected a trained network"):
        inspect(change(config, model=PLUS.victim.model), detect_in=tmp_path / "none")
    with pytest.raises(InputError, match=r"defense: expected one with a detector"):
        inspect(
            change(config, detection=PruningDetectionConfig(), trigger_finetuning=TriggerFinetuningConfig()),
            detect_in=tmp_path / "none",
        )


def test_finetuning_changes_weights_and_no_statistics(small):
    network, variables, _ = small
    images = jax.random.uniform(jax.random.key(0), (40, *network.image_shape))
    labels = jnp.argmax(network.apply(variables, images), axis=-1).astype(jnp.int32)
    settings = {"config": dataclasses.replace(TRIGGER_FINETUNING, shares=(1.0,)), "synthetic": SYNTHETIC}
    apply = lambda v: finetune_class(network, v, Batch(images, labels), 3, key=jax.random.key(1), **settings)  # noqa: E731
    finetuned, info = jax.jit(apply)(variables)
    assert info.share.tolist() == [1.0, 1.0]  # fine-tuning, relearning
    # phases, rounds, epochs, steps over the images without and with either kind of trigger, and those made anew
    assert info.loss.shape == (2, 2, 1, 6)
    assert bool(jnp.isfinite(info.loss).all())
    jax.tree.map(np.testing.assert_array_equal, split(finetuned)[1], split(variables)[1])
    assert not all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(finetuned), jax.tree.leaves(variables), strict=True)
    )
    with pytest.raises(InputError, match=r"trigger_finetuning.triggers: expected at least 1, found 0"):
        finetune_class(
            network,
            variables,
            Batch(images, labels),
            3,
            key=jax.random.key(1),
            **settings | {"config": TriggerFinetuningConfig()},
        )


def test_images_of_flagged_classes_are_left_out(small):
    network, variables, _ = small
    images = jax.random.uniform(jax.random.key(0), (40, *network.image_shape))
    labels = jnp.arange(40, dtype=jnp.int32) % 10
    scores = jnp.zeros(10).at[3].set(0.9).at[5].set(0.8)
    settings = {
        "threshold": 0.5,
        "key": jax.random.key(1),
        "config": dataclasses.replace(TRIGGER_FINETUNING, shares=(1.0,)),
        "synthetic": SYNTHETIC,
    }
    apply = jax.jit(lambda images, s: finetune_classes(network, variables, Batch(images, labels), s, **settings))

    def change(of, scores):
        """How much the parameters depend on what the images of a class look like."""
        before, _ = apply(images, scores)
        after, info = apply(jnp.where((labels == of)[:, None, None, None], 0.5, images), scores)
        pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
        return max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs), info

    # Triggers are inverted on images of all classes; fine-tuning uses those of classes that are not flagged.
    settings_of_search = dataclasses.replace(TINY, images=1)
    settings["config"] = dataclasses.replace(
        settings["config"], patch=settings_of_search, perturbation=settings_of_search
    )
    assert change(3, scores)[0] == 0
    assert change(5, scores)[0] == 0
    changed, info = change(7, scores)
    assert changed > 0
    assert info.share.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    # Only flagged classes are fine-tuned, and nothing is changed without any.
    assert change(7, scores.at[5].set(0.1))[1].share.tolist() == [[1.0, 1.0], [0.0, 0.0]]
    same, info = apply(images, jnp.zeros(10))
    assert info.share.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    jax.tree.map(np.testing.assert_array_equal, same, variables)


@pytest.mark.parametrize(
    ("success", "own", "relearning", "expected"),
    [
        ((0.9, 0.02, 0.0), (1.0, 0.3, 0.1), False, 1),  # no further than needed
        ((0.9, 0.02, 0.0), (1.0, 0.8, 0.1), False, 2),  # the class's own images still hold the trigger
        ((0.9, 0.02, 0.0, 0.0), (1.0, 0.8, 0.7, 0.6), False, 3),  # ... and most of them to the end
        ((0.9, 0.5, 0.3), (1.0, 0.3, 0.1), False, 2),  # nowhere enough: where triggers work least
        ((0.0, 0.04, 0.04, 0.2), (0.1, 0.3, 0.5, 0.9), True, 2),  # as much of the class as triggers allow
        ((0.0, 0.01, 0.02), (0.5, 0.4, 0.3), True, 0),  # a relearning phase that costs the class is not chosen
    ],
)
def test_which_share_is_chosen(success, own, relearning, expected):
    config = TriggerFinetuningConfig(success=0.02, own=0.35, relearned_success=0.05)
    assert int(choose_share(jnp.array(success), jnp.array(own), relearning=relearning, config=config)) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"detection": PruningDetectionConfig()},
            "detection.gamma: expected settings to try beside trigger_finetuning.triggers",
        ),
        (
            {
                "detection": PruningDetectionConfig(gamma=(0.1,), synthetic=SyntheticConfig(images=9)),
                "trigger_finetuning": TriggerFinetuningConfig(triggers=1),
            },
            "trigger_finetuning.finetuning.batch_size: expected at most 27, three times detection.synthetic.images, "
            "found 50",
        ),
        (
            {"trigger_finetuning": dataclasses.replace(TRIGGER_FINETUNING, relearned=41)},
            "trigger_finetuning.relearned: expected at most 40, detection.synthetic.images, found 41",
        ),
    ],
)
def test_impossible_settings_end_before_anything_is_made(changes, message):
    with pytest.raises(InputError) as error:
        change(PLUS, **changes)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("rounds", 0, "a whole number of at least 1"),
        ("classes", 0, "a whole number of at least 1"),
        ("shares", (), "ascending shares"),
        ("shares", (0.5, 0.2), "ascending shares"),
        ("success", 1.5, "a number in [0, 1]"),
        ("own", -0.1, "a number in [0, 1]"),
        ("relearned", 0, "a whole number of at least 1"),
        ("relearned_success", 2.0, "a number in [0, 1]"),
    ],
)
def test_bad_settings(field, value, expected):
    with pytest.raises(InputError) as error:
        TriggerFinetuningConfig(**{field: value})
    assert str(error.value) == f"trigger_finetuning.{field}: expected {expected}, found {value}"


def test_only_otbr_finetunes_on_triggers():
    with pytest.raises(
        InputError, match=r"config.trigger_finetuning: expected settings of 'tsbd', .* found 'trigger_finetuning'"
    ):
        repaired_by("tsbd", CONFIG, trigger_finetuning=TRIGGER_FINETUNING)


@pytest.mark.slow
def test_two_devices_agree_with_one(finished, tmp_path):
    _, _, one = finished
    two = summarize(run(tmp_path / "w", PLUS, devices=2))
    assert two["verdict"]["suspect"] == one["verdict"]["suspect"]
    assert two["choice"] == one["choice"]
    assert [*two["metrics"]] == [*one["metrics"]]


def test_as_a_pure_function(small):
    network, variables, graph = small
    detection = dataclasses.replace(PLUS.method.detection, gamma=(0.3, 0.5))  # of 7 neurons
    config = OTBRSettings(otbr=CONFIG.method.otbr, detection=detection)
    repair = lambda v, key: otbr_plus(network, v, graph, key=key, config=config)  # noqa: E731
    repaired, info = jax.jit(repair)(variables, jax.random.key(0))
    assert info.share is None
    assert [*info.triggers] == ["patch", "perturbation"]
    same = [np.array_equal(a, b) for a, b in zip(jax.tree.leaves(repaired), jax.tree.leaves(variables), strict=True)]
    assert bool(info.findings.detected.flagged)
    assert round(float(info.gamma), 4) in detection.gamma
    assert float(info.lam) in detection.lam
    assert not all(same)
    with pytest.raises(InputError, match=r"detection.gamma: expected at least one, found none"):
        otbr_plus(network, variables, graph, key=jax.random.key(0), config=OTBRSettings())
