"""One answer with three values, from a detector's numbers to JSON, rows and a p-value."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otbr_jax import Batch, Network, detect
from otbr_jax.detectors.calibration import Calibration, calibrated, calibration_of
from otbr_jax.detectors.detector import Detector, conclude
from otbr_jax.detectors.free_eagle import FreeEagleConfig
from otbr_jax.detectors.mm_bd import MMBDConfig
from otbr_jax.detectors.neural_cleanse import NeuralCleanseConfig
from otbr_jax.detectors.registry import DETECTORS
from otbr_jax.detectors.trigger_size import DetectionConfig, ImagesConfig, TriggerSizeSettings
from otbr_jax.detectors.verdict import Backdoored, in_words, p_value, read_verdict, verdict_of, with_enough_classes
from otbr_jax.inversion import InversionConfig
from otbr_jax.steps.margin import MarginConfig

RESULTS = pathlib.Path(__file__).resolve().parent.parent / "results"
MARGIN = MarginConfig(steps=2, images=2)
BRIEF = {
    "neural_cleanse": NeuralCleanseConfig(steps=2, batch_size=4),
    "free_eagle": FreeEagleConfig(steps=2),
    "mm_bd": MMBDConfig(margin=MARGIN),
    "trigger_size": TriggerSizeSettings(
        images=ImagesConfig(made=20, images=10),
        inversion=InversionConfig(steps=2, images=8, starts=2, finalists=1),
        margin=MARGIN,
        detection=DetectionConfig(families=("patch",), threshold=1e-6),
    ),
}


def said(scores, threshold=2.0, **more):
    return verdict_of(scores, threshold=threshold, **more)


def linear(classes):
    def apply(variables, images):
        return (
            jax.nn.relu(images.reshape(len(images), -1) @ variables["params"]["inner"]) @ variables["params"]["outer"]
        )

    keys = jax.random.split(jax.random.key(0))
    params = {"inner": jax.random.normal(keys[0], (16, 8)), "outer": jax.random.normal(keys[1], (8, classes))}
    return Network(apply, (4, 4, 1), classes), {"params": params}


def test_three_values_through_json_and_back():
    yes, no, unknown = said([1.0, 3.0, 0.0]), said([1.0, 1.5, 0.0]), with_enough_classes(said([1.0, 9.0]), 3)
    for verdict, value in ((yes, "yes"), (no, "no"), (unknown, "cannot tell")):
        assert verdict.backdoored == value
        text = json.dumps(verdict._replace(triggers=(np.ones(1), np.ones(1)), evidence={"a": (1.0, None)}).plain())
        back = read_verdict(json.loads(text))
        assert back == verdict._replace(evidence={"a": (1.0, None)})
        assert isinstance(back.backdoored, Backdoored)
        assert f'"backdoored": "{value}"' in text
    assert (yes.suspect, yes.score, yes.why_not) == (1, 3.0, "")
    assert "2 classes" in unknown.why_not


def test_no_is_not_mistaken_for_a_truth_value():
    for value in Backdoored:
        with pytest.raises(TypeError, match="expected a comparison, such as `backdoored == 'yes'`"):
            bool(value)


@pytest.mark.parametrize("name", DETECTORS)
def test_of_two_classes_nobody_can_tell(name):
    network, variables = linear(2)
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 1), dtype=np.uint8)
    clean = None if DETECTORS[name].data == "none" else Batch(images, np.arange(12) % 2)
    found = detect(name, network, variables, key=jax.random.key(0), clean=clean, config=BRIEF[name])
    assert (found.backdoored, found.p_value) == ("cannot tell", None)
    assert found.why_not.startswith(
        f"the network has 2 classes, and the detector needs at least {DETECTORS[name].fewest_classes};"
    )
    assert len(found.scores) == 2


def test_of_as_many_classes_as_it_needs_a_detector_answers():
    network, variables = linear(DETECTORS["mm_bd"].fewest_classes)
    found = detect("mm_bd", network, variables, key=jax.random.key(0), config=BRIEF["mm_bd"])
    assert found.backdoored in ("yes", "no")
    assert found.p_value is not None


def test_a_detector_needs_as_many_classes_as_it_says():
    assert {name: detector.fewest_classes for name, detector in DETECTORS.items()} == {
        "free_eagle": 4,
        "mm_bd": 6,
        "neural_cleanse": 3,
        "trigger_size": 3,
    }


def test_a_score_never_contradicts_its_threshold():
    """Steps compare 24 bits, and people see six decimals."""
    rng = np.random.default_rng(0)
    for limit in (3.5, 0.41, 1.30103, 1e-6, -9.0):
        near = np.float32(limit) * (1 + np.float32(2e-7) * rng.integers(-4, 5, 200).astype(np.float32))
        for score in (*near, np.nextafter(np.float32(limit), np.float32(9e9)), np.float32(limit)):
            scores = jnp.array([-99.0, score, -99.0])
            by_step = verdict_of(scores, threshold=limit, suspect=1, flagged=bool(scores[1] >= limit))
            for found in (by_step, verdict_of(scores, threshold=limit)):
                assert (found.score >= found.threshold) == (found.backdoored == "yes"), found
                assert found.score == max(found.scores)
                assert found.score == pytest.approx(float(score), abs=1e-6)
            assert (by_step.backdoored == "yes") == bool(scores[1] >= limit)


def test_what_is_no_number_is_no_verdict():
    found = said([1.0, float("nan"), 9.0])
    assert (found.backdoored, found.suspect, found.scores) == ("cannot tell", 2, (1.0, None, 9.0))
    assert "classes [1]" in found.why_not
    assert json.dumps(found.plain(), allow_nan=False)
    nothing = said([float("nan")] * 3)
    assert nothing.score is None
    assert "NaN" in in_words(nothing)


def test_a_p_value_counts_clean_networks():
    clean = [1.0, 2.0, 2.0, 5.0]
    assert p_value(9.0, clean) == 1 / 5
    assert p_value(2.0, clean) == 4 / 5
    assert p_value(0.0, clean) == 1
    assert p_value(9.0, []) == 1
    found = calibrated(said([0.0, 2.0, 1.0]), Calibration((1.0, 2.0, 2.0, 5.0)))
    assert (found.p_value, found.clean_networks) == (0.8, 4)
    assert in_words(found).endswith("; p-value 0.8: 3 of 4 clean networks score as high")
    assert in_words(calibrated(said([9.0, 2.0, 1.0]), Calibration((1.0,)))).endswith(
        "; p-value 0.5: none of 1 clean networks scores as high"
    )
    unknown = with_enough_classes(said([0.0, 2.0]), 3)
    assert calibrated(unknown, Calibration((1.0,))) == unknown


def test_a_p_value_is_of_the_usual_settings_or_says_why_it_is_not():
    def asked(name, usual, **more):
        verdict = said([1.0, 3.0, 0.0], **more)
        detector = Detector(name, object, "none", lambda _: (), lambda *_: verdict, is_calibrated=lambda _: usual)
        return conclude(detector, None, {})

    usual, other, nobody = asked("trigger_size", True), asked("trigger_size", False), asked("x", True)
    scores = calibration_of("trigger_size").scores
    assert usual.p_value == p_value(3.0, scores)
    assert (usual.clean_networks, usual.why_not) == (len(scores), "") == (60, "")
    assert (other.p_value, nobody.p_value) == (None, None)
    assert "other settings of the search" in other.why_not
    assert nobody.why_not == "no clean networks were scored by x"
    assert {usual.backdoored, other.backdoored, nobody.backdoored} == {"yes"}
    own = asked("trigger_size", True, p_value=0.0123456)  # of a null distribution
    assert (own.p_value, own.clean_networks) == (0.01235, 0)
    assert in_words(own).endswith("threshold 2 (trigger_size); p-value 0.012")


def test_a_verdict_in_words():
    assert in_words(said([1.0, 3.0, 2.5, 0.0])) == (
        "class 1 is flagged: score 3.00, threshold 2; above the threshold, too: class 2 (2.50)"
    )
    assert in_words(said([1.0, 0.5, 0.0])) == "no class is flagged: class 0 scores highest, 1.00, threshold 2"
    few = in_words(with_enough_classes(said([1.0, 3.0]), 3))
    assert few.startswith(
        "cannot tell whether it is backdoored: the network has 2 classes, and the detector needs at least 3;"
    )
    assert few.endswith("class 1 scores highest, 3.00, threshold 2")


# --- rows that are older than verdicts ----------------------------------------------------------------------------
