"""Distillation of the suspicious network into the fused one, without data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import disturbed
from test_pipeline import CONFIG, run

from otbr_jax import Batch, InputError
from otbr_jax.contrib.distill import DistillationConfig, distill
from otbr_jax.contrib.images import SyntheticConfig
from otbr_jax.contrib.otbr_plus import SweepConfig
from otbr_jax.contrib.pruning_detection import PruningDetectionConfig
from otbr_jax.contrib.trigger_finetuning import TriggerFinetuningConfig
from otbr_jax.models.registry import ModelConfig
from otbr_jax.report.summary import summary_table
from otbr_jax.settings import change
from otbr_jax.steps.finetune import FinetuningConfig
from otbr_jax.steps.objective import cross_entropy
from otbr_jax.studies.repair_config import repaired_by
from otbr_jax.studies.results import summarize
from otbr_jax.types import split
from otbr_jax.victims.training import TrainingConfig

SMALL = ModelConfig("vgg7_bn", width=4, depth=(1, 1, 1, 1), image_shape=(8, 8, 1))
TUNING = FinetuningConfig(epochs=4, batch_size=20, learning_rate=0.02, alpha=0.0)


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(1), (40, 8, 8, 1))


@pytest.mark.parametrize("targets", ["probabilities", "labels"])
def test_it_brings_predictions_closer_and_keeps_the_statistics(small, images, targets):
    network, student, _ = small
    teacher = jax.jit(disturbed)(student, jax.random.key(3))
    config = DistillationConfig(targets=targets, finetuning=TUNING)

    def distilled(variables):
        return distill(network, variables, teacher, images, key=jax.random.key(0), config=config)

    def apart(variables):
        expected, log_probs = (jax.nn.log_softmax(network.apply(v, images)) for v in (teacher, variables))
        probabilities = jax.nn.one_hot(jnp.argmax(expected, axis=-1), 10) if targets == "labels" else jnp.exp(expected)
        return -jnp.mean(jnp.sum(probabilities * log_probs, axis=-1))

    after = jax.jit(distilled)(student)
    assert apart(after) < apart(student)
    jax.tree.map(np.testing.assert_array_equal, split(after)[1], split(student)[1])
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, student)


def test_a_network_that_is_its_own_teacher_learns_nothing(small, images):
    network, variables, _ = small
    config = DistillationConfig(targets="probabilities", finetuning=TUNING)
    after = distill(network, variables, variables, images, key=jax.random.key(0), config=config)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), after, variables)


def test_without_targets_the_network_is_unchanged(small, images):
    network, student, _ = small
    after = distill(network, student, student, images, key=jax.random.key(0), config=DistillationConfig())
    assert after is student


def test_certain_probabilities_are_labels(small, images):
    network, variables, _ = small
    params, state = split(variables)
    labels = jnp.arange(40) % 10
    objective = cross_entropy(network, params)
    (first, grads), (second, others) = (
        objective(params, state, Batch(images, given)) for given in (labels, jax.nn.one_hot(labels, 10))
    )
    np.testing.assert_allclose(first.loss, second.loss, rtol=1e-6)
    assert first.accuracy == second.accuracy
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, others)


@pytest.mark.slow
def test_a_repair_with_distillation_is_reported_everywhere(tmp_path):
    config = change(
        CONFIG,
        model=SMALL,
        training=TrainingConfig(epochs=1),
        sweep=SweepConfig(gamma=(CONFIG.method.otbr.gamma,), lam=(CONFIG.method.otbr.fusion.lam,)),
        detection=PruningDetectionConfig(synthetic=SyntheticConfig(images=20, steps=4)),
        distillation=DistillationConfig("probabilities", FinetuningConfig(epochs=2, batch_size=20, alpha=0.0)),
    )
    result = run(tmp_path / "w", config)
    summary = summarize(result)
    assert [*summary["metrics"]] == ["victim", "unlearned", "pruned", "fused", "distilled"]
    assert all({"pruned", "distilled"} < {*row} for row in summary["sweep"])
    assert summary["oracle"]["distilled"] in [row["distilled"] for row in summary["sweep"]]
    # The grid's programs are the stages': at the chosen setting both say the same.
    chosen = next(
        row
        for row in summary["sweep"]
        if (row["gamma"], row["lambda"]) == (config.method.otbr.gamma, config.method.otbr.fusion.lam)
    )
    assert chosen["distilled"]["acc"] == pytest.approx(summary["metrics"]["distilled"]["acc"], abs=0.01)
    assert "repaired (after distillation)" in summary_table(summary).text()
    assert "repaired (after distillation)" in (tmp_path / "w" / "report.html").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"targets": "all"},
            r"distillation.targets: expected one of \['none', .*'labels'\], found 'all'",
        ),
        ({"crop_padding": -1}, "distillation.crop_padding: expected a whole number of at least 0, in pixels, found -1"),
    ],
)
def test_unknown_settings(settings, message):
    with pytest.raises(InputError, match=message):
        DistillationConfig(**settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {
                "trigger_finetuning": TriggerFinetuningConfig(triggers=1),
                "detection": PruningDetectionConfig(gamma=(0.1,)),
            },
            "expected 'none' beside trigger_finetuning.triggers, .*, found 'labels'",
        ),
        (
            {"detection": PruningDetectionConfig(synthetic=SyntheticConfig(images=49))},
            "distillation.finetuning.batch_size: expected at most 49, detection.synthetic.images, found 50",
        ),
    ],
)
def test_what_cannot_be_distilled(changes, message):
    with pytest.raises(InputError, match=message):
        change(CONFIG, distillation=DistillationConfig("labels"), **changes)


def test_only_otbr_distills():
    with pytest.raises(InputError, match=r"config.distillation: expected settings of 'tsbd', .*found 'distillation'"):
        repaired_by("tsbd", CONFIG, distillation=DistillationConfig("labels"))
