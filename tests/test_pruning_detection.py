"""Which class is flagged, what remains of it, and which setting is chosen."""

import dataclasses
import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otbr_jax import Batch, InputError, Network
from otbr_jax.contrib.evidence import EVIDENCE, Observations, Predictions
from otbr_jax.contrib.pruning_detection import (
    PruningDetectionConfig,
    anomaly_scores,
    count_predictions,
    detect_by_pruning,
    remaining,
)
from otbr_jax.contrib.trigger_finetuning import TriggerFinetuningConfig
from otbr_jax.inversion import InvertedTriggers
from otbr_jax.report.rows import field, parse
from otbr_jax.triggers.patch import Patch

RESULTS = pathlib.Path(__file__).resolve().parent.parent / "results" / "bench_otbr_plus.jsonl"
CONFIG = PruningDetectionConfig(gamma=(0.1, 0.2, 0.3), lam=(0.5,), remaining=0.1)


def triggers(size, strength=0.1):
    """Inverted triggers, as far as evidence reads them."""
    size = jnp.asarray(size, jnp.float32)
    strength = jnp.broadcast_to(jnp.asarray(strength, jnp.float32), size.shape)
    sizes = {"patch": size, "perturbation": strength}
    return {family: InvertedTriggers((), size, jnp.ones_like(size)) for family, size in sizes.items()}


@partial(jax.jit, static_argnames="evidence")
def scores_of(triggers, predictions, evidence=tuple(EVIDENCE)):
    return anomaly_scores(Observations(triggers, predictions, agreement=0.9), evidence=evidence)


detect = jax.jit(detect_by_pruning, static_argnames="config")


def predictions(agreement, success):
    return Predictions(jnp.asarray(agreement, jnp.float32), jnp.asarray(success, jnp.float32))


SAME = predictions(jnp.ones((3, 4)), jnp.ones((3, 4)))
FALLEN = predictions(
    [[1, 1, 1, 1], [1, 0.7, 1, 1], [0.4, 0, 0.5, 0.5]],
    [[0.9, 0.9, 0.9, 0.9], [0.9, 0.09, 0.9, 0.9], [0.5, 0, 0.5, 0.5]],
)


def test_a_network_whose_classes_are_alike_is_not_flagged():
    findings = detect(triggers([0.2] * 4), SAME, config=CONFIG)
    np.testing.assert_allclose(findings.detected.scores, 0, atol=1e-6)
    assert not findings.detected.flagged


@pytest.mark.parametrize("function", [detect_by_pruning, detect], ids=["no jit", "jit"])
def test_a_class_that_falls_first_and_has_a_small_trigger_is_flagged(function):
    findings = function(triggers([0.2, 0.1, 0.2, 0.2]), FALLEN, config=CONFIG)
    # Half the median size; and, over the two settings that keep 90 % of the predictions, nothing lost in the first, all
    # but 0.7 of the predictions and a tenth of the trigger's success in the second, where others lose nothing. By half.
    score = 0.5 + (1 - 0.7 * 0.1) / 2 / 2
    np.testing.assert_allclose(findings.detected.scores, [0, score, 0, 0], atol=1e-6)
    assert findings.detected.suspect == 1
    assert findings.detected.flagged
    np.testing.assert_allclose(findings.remaining, [1, 0.07, 0], atol=1e-6)
    assert findings.chosen == 1  # of the two that leave little, the one that agrees more


def test_neither_the_order_of_classes_nor_of_settings_matters():
    sizes, classes = jnp.array([0.2, 0.1, 0.25, 0.2]), jnp.array([2, 0, 3, 1])
    scores = scores_of(triggers(sizes), FALLEN)
    permuted = Predictions(FALLEN.agreement[:, classes], FALLEN.success[:, classes])
    np.testing.assert_allclose(scores_of(triggers(sizes[classes]), permuted), scores[classes], atol=1e-6)
    reversed_ = Predictions(*(values[::-1] for values in FALLEN))
    np.testing.assert_allclose(scores_of(triggers(sizes), reversed_), scores, atol=1e-6)
    np.testing.assert_allclose(remaining(reversed_, 1), remaining(FALLEN, 1)[::-1], atol=1e-6)


def test_of_two_classes_that_fall_alike_none_is_flagged():
    twice = Predictions(*(values.at[:, 2].set(values[:, 1]) for values in FALLEN))
    findings = detect(triggers([0.2] * 4), twice, config=dataclasses.replace(CONFIG, agreement=0.8))
    np.testing.assert_allclose(findings.detected.scores, 0, atol=1e-6)
    assert not findings.detected.flagged


def test_of_two_classes_none_is_flagged():
    findings = detect(triggers([0.2, 0.01]), predictions(jnp.ones((3, 2)), jnp.ones((3, 2))), config=CONFIG)
    assert findings.detected.scores[1] > CONFIG.threshold
    assert not findings.detected.flagged


def test_a_small_trigger_is_evidence_without_a_fall_and_the_reverse():
    small = scores_of(triggers([0.2, 0.1, 0.2, 0.2]), SAME)
    fallen = scores_of(triggers([0.2] * 4), FALLEN)
    both = scores_of(triggers([0.2, 0.1, 0.2, 0.2]), FALLEN)
    np.testing.assert_allclose(small + fallen, both, atol=1e-6)
    weak = scores_of(triggers([0.2] * 4, [0.1, 0.05, 0.1, 0.1]), SAME)
    np.testing.assert_allclose(weak, [0, 0.25, 0, 0], atol=1e-6)
    # A class that falls although its trigger is larger than the others' is the less suspicious for it.
    assert scores_of(triggers([0.2, 0.25, 0.2, 0.2]), FALLEN)[1] < fallen[1]


def test_where_nothing_clears_the_suspect_what_leaves_least_is_chosen():
    config = dataclasses.replace(CONFIG, remaining=0.0)
    success = FALLEN.success.at[2, 1].set(0.2)
    kept = FALLEN.agreement.at[2, 1].set(0.1)
    findings = detect(triggers([0.2, 0.1, 0.2, 0.2]), Predictions(kept, success), config=config)
    assert int(jnp.argmin(findings.remaining)) == 2
    assert findings.chosen == 1  # the last setting has lost too many predictions
    lenient = dataclasses.replace(config, least_agreement=0.0)
    assert detect(triggers([0.2, 0.1, 0.2, 0.2]), Predictions(kept, success), config=lenient).chosen == 2


def test_no_setting_that_agrees_and_triggers_that_never_worked():
    lost = predictions(jnp.zeros((2, 4)), jnp.zeros((2, 4)))
    findings = detect(triggers([0.0] * 4), lost, config=CONFIG)
    assert all(bool(jnp.isfinite(values).all()) for values in (findings.detected.scores, findings.remaining))
    assert not findings.detected.flagged


def test_the_score_is_the_sum_of_the_chosen_evidence():
    inverted, fallen = triggers([0.2, 0.1, 0.2, 0.2], [0.1, 0.05, 0.1, 0.1]), FALLEN
    each = {name: scores_of(inverted, fallen, evidence=(name,)) for name in EVIDENCE}
    for name, values in each.items():
        expected = EVIDENCE[name].weight * EVIDENCE[name].of(Observations(inverted, fallen, 0.9))
        np.testing.assert_allclose(values, expected, atol=1e-6)
    np.testing.assert_allclose(scores_of(inverted, fallen), sum(each.values()), atol=1e-6)
    config = dataclasses.replace(CONFIG, evidence=("fall",))
    np.testing.assert_allclose(detect(inverted, fallen, config=config).detected.scores, each["fall"], atol=1e-6)


def test_predictions_are_counted_class_by_class():
    # The prediction is the brightest of three pixels; class 2's trigger makes the last one white.
    network = Network(lambda v, x: x.reshape(len(x), -1) * v["params"], image_shape=(1, 3, 1), num_classes=3)
    batch = Batch(jnp.eye(3).reshape(3, 1, 3, 1) * 0.5, jnp.arange(3))
    mask = jnp.zeros((3, 1, 3, 1)).at[2, 0, 2, 0].set(1.0)
    patches = InvertedTriggers(Patch(mask, jnp.ones((3, 1, 3, 1))), jnp.mean(mask, axis=(1, 2, 3)), jnp.zeros(3))
    whole = count_predictions(network, {"params": jnp.ones(3)}, batch, patches)
    np.testing.assert_allclose(whole.agreement, [1, 1, 1])
    np.testing.assert_allclose(whole.success, [0, 0, 1])
    pruned = count_predictions(network, {"params": jnp.array([1.0, 1.0, 0.0])}, batch, patches)
    np.testing.assert_allclose(pruned.agreement, [1, 1, 0])
    np.testing.assert_allclose(pruned.success, [0.5, 0, 0])
    # Images come before `prepare`: here it turns white into black.
    inverted = dataclasses.replace(network, prepare=lambda images: 1 - images)
    np.testing.assert_allclose(
        count_predictions(inverted, {"params": jnp.ones(3)}, batch, patches).agreement, [0, 0, 0]
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": (0.1, 1.5)}, "detection.gamma: expected a list of numbers in [0, 1], found 1.5 among them"),
        ({"gamma": (0.1,), "lam": ()}, "detection.lam: expected lambdas beside detection.gamma [0.1], found none"),
        ({"remaining": -1.0}, "detection.remaining: expected a number in [0, 1], found -1.0"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(InputError) as error:
        PruningDetectionConfig(**settings)
    assert str(error.value) == message


def test_rows_with_another_threshold_come_out_the_same_at_the_default_one():
    default, classes = PruningDetectionConfig().threshold, TriggerFinetuningConfig().classes
    for row in parse(RESULTS.read_text(), name=RESULTS.name):
        scores = sorted(field(row, "verdict.scores"))[-classes:]
        then, now = ([score >= limit for score in scores] for limit in (field(row, "verdict.threshold"), default))
        assert then == now, row.place


def test_there_is_some_evidence():
    with pytest.raises(InputError, match=r"detection.evidence: expected at least one of .*, found none"):
        PruningDetectionConfig(evidence=())
