"""Disarm: procedural images, trigger families, a planted backdoor that is detected and unlearned, a whole run."""

import copy
import dataclasses
import json
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs

from otbr_jax import Batch, InputError, Network, plan
from otbr_jax.defenses import disarm, disarm_clean
from otbr_jax.defenses.disarm import DisarmSettings, to_unlearn
from otbr_jax.detectors import trigger_size as detecting
from otbr_jax.detectors.anomalies import CLASS_BIAS, MAXIMUM_MARGIN, Anomalies, find_anomalies, size_anomalies
from otbr_jax.detectors.calibration import read_calibration
from otbr_jax.detectors.trigger_size import DetectionConfig, ImagesConfig, clean_evidence
from otbr_jax.inversion import InversionConfig, MinimalTriggers, minimal_triggers
from otbr_jax.inversion.minimal import classes_at_once
from otbr_jax.numerics.flops import flops_of
from otbr_jax.runs.identity import plain
from otbr_jax.runs.networks import check_classes
from otbr_jax.steps.margin import MarginConfig, maximum_margins
from otbr_jax.steps.procedural import balanced_sample, procedural
from otbr_jax.steps.screen import screen
from otbr_jax.steps.unlearn_triggers import (
    TriggersToUnlearn,
    TriggerUnlearningConfig,
    unlearn_nothing,
    unlearn_triggers,
)
from otbr_jax.studies.repair_config import repaired_by
from otbr_jax.studies.results import summarize
from otbr_jax.triggers import FAMILIES, FamilySwitch

SHAPE = (12, 12, 3)


@pytest.fixture(scope="module")
def images():
    return jax.jit(lambda key: procedural(key, images=96, image_shape=SHAPE))(jax.random.key(0))


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 14, 4)])
def test_images_of_any_shape(shape):
    make = jax.jit(lambda key: procedural(key, images=7, image_shape=shape))
    images = make(jax.random.key(3))
    assert images.shape == (7, *shape)
    assert 0 <= images.min() < 0.3 < 0.7 < images.max() <= 1
    np.testing.assert_array_equal(images, make(jax.random.key(3)))
    assert len({float(image.mean()) for image in images}) == 7


def test_images_are_balanced_by_predicted_class():
    predictions = jnp.array([0] * 900 + [1] * 90 + [2] * 2)
    kept = balanced_sample(predictions, classes=4, images=400, key=jax.random.key(0))
    first, last = (jnp.bincount(predictions[part], length=4) for part in (kept[:200], kept[200:]))
    for count in (first, last):  # from beginning to end: inversions take them in order
        assert 70 < count[0] < 120
        assert 70 < count[1] < 120
        assert 0 < count[2] < 20
        assert count[3] == 0


def test_one_logit_is_refused(planted):
    with pytest.raises(InputError, match=r"^model.num_classes: expected at least 2"):
        check_classes(dataclasses.replace(planted[0], num_classes=1))


def test_of_two_classes_none_is_flagged():
    anomalies = find_anomalies(
        jnp.array([[0.001, 0.9]]),
        jnp.ones(2),
        jnp.array([0.9, 0.1]),
        clean_evidence=clean_evidence(),
        families=("patch",),
        threshold=0.1,
        share=0.6,
        budget=0.5,
        unlearn="suspect",
    )
    assert float(anomalies.detected.scores[0]) > 1
    assert not anomalies.detected.flagged
    assert not anomalies.wanted.any()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trigger_stays_within_its_budget(name, images):
    family, switch = FAMILIES[name], FamilySwitch(tuple(FAMILIES.values()), SHAPE)
    index = [*FAMILIES].index(name)
    latent = jax.tree.map(lambda leaf: 3 * leaf + 0.1, family.init(jax.random.key(1), SHAPE))
    low, high = family.bounds
    assert low < family.start < high
    apply = jax.jit(family.apply)
    middle = 0.3 + 0.4 * images[:8]  # far from 0 and 1, where nothing is cut off
    for budget in (family.start / 4, family.start):
        after = apply(middle, latent, budget)
        assert after.shape == middle.shape
        change = after - middle
        assert jnp.max(jnp.abs(change)) > 0
        if name == "patch":
            assert jnp.mean(jnp.abs(change)) <= 1.001 * budget
        elif name != "warp":
            assert jnp.max(jnp.sqrt(jnp.mean(change**2, axis=(1, 2, 3)))) <= 1.001 * budget
        # A switch of all families does the same with a flat latent.
        flat = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(latent)])
        flat = jnp.pad(flat, (0, switch.length - len(flat)))
        np.testing.assert_allclose(switch[jnp.int32(index)].apply(middle, flat, budget), after, atol=1e-6)
    small, large = (jnp.mean(jnp.abs(apply(middle, latent, b) - middle)) for b in (family.start / 4, family.start))
    assert small < large


def test_a_mask_covers_its_share():
    from otbr_jax.triggers.patch import project_mask

    mask = jax.random.normal(jax.random.key(0), (12, 12, 1))
    covered = project_mask(mask, 0.05)
    np.testing.assert_allclose(jnp.mean(covered), 0.05, atol=1e-4)
    assert jnp.mean(covered == 0) > 0.8
    assert covered.ravel()[jnp.argmax(mask)] == jnp.max(covered)
    np.testing.assert_array_equal(project_mask(mask / 1e3, 0.5), jnp.clip(mask / 1e3, 0, 1))  # small enough as it is


HIDDEN = jnp.where(jax.random.bernoulli(jax.random.key(8), 0.5, SHAPE), 1.0, -1.0)


@pytest.fixture(scope="module")
def planted(images):
    """(network, variables, images with predictions): a linear classifier, in which a faint pattern means class 1."""

    def apply(variables, images):
        params = variables["params"]
        blocks = images.reshape(-1, 4, 3, 4, 3, 3).mean((2, 4)).reshape(len(images), -1) - 0.5
        pattern = ((images - 0.5) * HIDDEN).mean((1, 2, 3))
        return blocks @ params["kernel"] + pattern[:, None] * params["gain"]

    kernel = 1.0 * jax.random.normal(jax.random.key(5), (48, 4))
    variables = {"params": {"kernel": kernel, "gain": jnp.array([0.0, 100.0, 0.0, 0.0])}}
    network = Network(apply, SHAPE, 4)
    return network, variables, Batch(images, jnp.argmax(network.answer(variables, images), -1).astype(jnp.int32))


def inverted(network, variables, batch, switch, config):
    """Minimal triggers of screened classes, with one key."""
    key, frequencies = jax.random.key(0), jnp.bincount(batch.labels, length=network.num_classes) / len(batch.labels)
    screened = screen(network, variables, batch, frequencies, switch, key=key, config=config)
    return minimal_triggers(network, variables, batch, switch, screened, key=key, config=config)


def test_a_planted_backdoor_is_detected_and_unlearned(planted, usual_compiler):
    network, variables, batch = planted
    switch = FamilySwitch((FAMILIES["patch"], FAMILIES["additive"], FAMILIES["warp"]), SHAPE)
    config = InversionConfig(steps=30, starts=8, finalists=2)
    minimal = jax.jit(lambda v: inverted(network, v, batch, switch, config))(variables)
    assert minimal.size.shape == (3, 4)
    assert jnp.argmin(minimal.size[1]) == 1
    margins = maximum_margins(network, variables, key=jax.random.key(2), config=MarginConfig(steps=20, images=2))
    assert jnp.argmax(margins) == 1
    frequencies = jnp.bincount(batch.labels, length=4) / len(batch.labels)
    families, clean = ("patch", "additive", "warp"), clean_evidence()
    rule = {"families": families, "threshold": 0.5, "share": 0.1, "budget": 0.6, "unlearn": "suspect"}
    anomalies = find_anomalies(minimal.size, margins, frequencies, clean_evidence=clean, **rule)
    (_, suspect, flagged), wanted = anomalies.detected, anomalies.wanted
    assert (suspect, bool(flagged), bool(wanted[1, 1])) == (1, True, True)

    stamped = jnp.clip(batch.images + 0.03 * HIDDEN, 0, 1)
    others = batch.labels != 1

    def success(v):
        return float(jnp.mean((jnp.argmax(network.answer(v, stamped), -1) == 1)[others]))

    tuning = TriggerUnlearningConfig(
        rounds=5, triggers=4, inversion=config, steps=150, batch_size=32, learning_rate=1e-1
    )
    unlearned, info = jax.jit(
        lambda v, triggers: unlearn_triggers(network, v, batch, switch, triggers, key=jax.random.key(1), config=tuning)
    )(variables, to_unlearn(anomalies._replace(wanted=wanted.at[::2].set(False)), minimal, families, clean))
    assert success(variables) > 0.6
    assert success(unlearned) < 0.5 * success(variables)
    kept = jnp.argmax(network.answer(unlearned, batch.images), -1) == batch.labels
    assert jnp.mean(kept) > 0.8
    assert info.done[0]
    assert not info.success[:, 1:].any()


def unlearned_additive(planted, *, wanted, budget, config):
    """(variables, info) of the planted network, after unlearning class 1's additive triggers if `wanted`."""
    network, variables, batch = planted
    switch = FamilySwitch((FAMILIES["additive"],), SHAPE)
    zero, one = jnp.array([0]), jnp.array([1])
    triggers = TriggersToUnlearn(
        zero, one, jnp.array([budget]), jnp.array([budget]), jnp.ones((1, switch.length)), jnp.array([wanted])
    )

    @jax.jit
    def unlearned(variables):
        return unlearn_triggers(network, variables, batch, switch, triggers, key=jax.random.key(0), config=config)

    return unlearned(variables)


def test_nothing_wanted_is_nothing_changed(planted):
    config = TriggerUnlearningConfig(rounds=2, triggers=2, inversion=InversionConfig(steps=2, starts=2), steps=2)
    same, info = unlearned_additive(planted, wanted=False, budget=0.1, config=config)
    chex.assert_trees_all_equal(same, planted[1], strict=True)
    assert not info.done.any()
    one = jnp.zeros(1)
    triggers = TriggersToUnlearn(one, one, one, one, one, jnp.zeros(1, bool))
    at_once = jax.jit(lambda variables: unlearn_nothing(variables, triggers, config=config))(planted[1])[1]
    chex.assert_trees_all_equal(at_once, info, strict=True)


def test_unlearning_is_compiled_only_where_a_class_is_flagged():
    """Else a smaller function takes their place, which `test_nothing_wanted_is_nothing_changed` compares with them."""
    step = disarm.plan(DisarmSettings())[-2]
    with_it, without = (Anomalies(*[None] * 3, np.array(wanted), None) for wanted in ([[True]], [[False]]))
    assert plan.shorten(step, {"detected": with_it}) == step
    other = plan.shorten(step, {"detected": without})
    assert (other.run, other.shown.work) == (disarm.return_unchanged, None)


def test_inversions_in_chunks_are_the_same(planted):
    network, variables, batch = planted
    switch = FamilySwitch((FAMILIES["low_frequency"],), SHAPE)
    settings = InversionConfig(steps=3, starts=4, finalists=3)

    def sizes(at_once):
        config = dataclasses.replace(settings, classes=at_once)
        return inverted(network, variables, batch, switch, config).size

    np.testing.assert_allclose(sizes(3), sizes(20), rtol=1e-5)


def test_of_some_classes_each_is_inverted_as_among_all(planted):
    """Screening keeps the target class, and does not change its minimal trigger."""
    network, variables, batch = planted
    switch = FamilySwitch((FAMILIES["additive"], FAMILIES["wave"]), SHAPE)
    config = InversionConfig(steps=4, starts=8, finalists=4)
    few, all_of_them = (
        jax.jit(partial(inverted, network, variables, batch, switch, dataclasses.replace(config, among=among)))()
        for among in (3, 0)
    )
    assert 1 in few.classes
    assert jnp.all(jnp.diff(few.classes) > 0)
    assert few.flat_latent.shape == (2, 3, switch.length)
    np.testing.assert_allclose(few.size, all_of_them.size[:, few.classes], rtol=1e-5)


def test_fewer_classes_are_inverted_at_once_where_layers_put_out_much(planted):
    network, variables, _ = planted
    assert classes_at_once(network, variables, InversionConfig(images=16)) == 20
    assert flops_of(network, variables) == (2 * 48 * 4, 4 * 4)
    assert classes_at_once(network, variables, InversionConfig(images=10_000_000)) == 12
    assert classes_at_once(network, variables, InversionConfig(images=10**9)) == 1


def test_size_anomalies_by_hand():
    even = jnp.exp(jnp.array([0.0, 1.0, 2.0])[:, None] + jnp.array([0.0, 0.3, 0.6, 0.9])[None, :])
    for scores in size_anomalies(even):  # families differ, which does not count; nor that classes do
        np.testing.assert_allclose(scores, [0.45, 0.15, 0, 0], atol=1e-5)
    scores = size_anomalies(even.at[1, 2].multiply(jnp.exp(-2.0)))
    assert jnp.unravel_index(jnp.argmax(scores), scores.shape) == (1, 2)
    assert scores[1, 2] > 1.5
    np.testing.assert_allclose(size_anomalies(jnp.array([[1.0, jnp.e, jnp.e]])), [[1, 0, 0]], atol=1e-6)


def test_every_kind_of_evidence_is_calibrated():
    assert {*clean_evidence()} == {*FAMILIES, MAXIMUM_MARGIN, CLASS_BIAS}


def test_scores_by_hand():
    """All kinds count together, each by how far it is above clean networks; below them it counts for nothing."""
    families, clean = ("patch", "wave"), clean_evidence()
    even, frequencies = jnp.ones((2, 5)), jnp.full(5, 0.2)

    def find(sizes, margins, *, threshold=3.0, unlearn="suspect"):
        rule = {"families": families, "threshold": threshold, "share": 0.6, "budget": 0.5, "unlearn": unlearn}
        return find_anomalies(sizes, margins, frequencies, clean_evidence=clean, **rule)

    assert not find(even, jnp.ones(5)).detected.scores.any()
    unreachable = find(even, jnp.array([3.0, -1, -1, -1, -1]))  # half of the classes can never be predicted
    assert not unreachable.detected.scores.any()
    (patch, spread), (margin, margin_spread) = (clean[kind] for kind in ("patch", MAXIMUM_MARGIN))
    sizes = even.at[0, 3].set(jnp.exp(-patch - 2 * spread))
    margins = jnp.ones(5).at[3].set(jnp.exp(margin + 1.5 * margin_spread))
    anomalies = find(sizes, margins)
    np.testing.assert_allclose(anomalies.detected.scores[3], 2.5, rtol=1e-4)
    assert (anomalies.detected.suspect, bool(anomalies.detected.flagged)) == (3, False)
    assert not anomalies.wanted.any()
    for others in (find(sizes, margins, threshold=2.0), find(sizes, margins, unlearn="all")):
        np.testing.assert_array_equal(jnp.argwhere(others.wanted), [[0, 3]])
    np.testing.assert_allclose(anomalies.budget[0, 3], jnp.sqrt(sizes[0, 3]), rtol=1e-5)  # halfway, as logarithms
    np.testing.assert_allclose(anomalies.budget[1, 3], 1.2, rtol=1e-5)  # above the suspect's minimal size


def test_unlearning_in_vain_is_reverted(planted):
    """Triggers that are so large that they are the class itself cannot be unlearned."""
    config = TriggerUnlearningConfig(
        rounds=2, triggers=2, inversion=InversionConfig(steps=12, starts=4), steps=2, learning_rate=1e-4
    )
    same, info = unlearned_additive(planted, wanted=True, budget=0.3, config=config)
    jax.tree.map(np.testing.assert_array_equal, same, planted[1])
    assert info.done.all()
    assert info.reverted


def test_new_triggers_are_not_unlearned_once_the_first_ones_fail(planted):
    """Triggers that are still inverted after the first ones fail are the class itself."""
    config = TriggerUnlearningConfig(
        rounds=6,
        triggers=2,
        inversion=InversionConfig(steps=12, starts=4),
        steps=20,
        learning_rate=3e-2,
        distortion=1e9,
    )
    _, info = unlearned_additive(planted, wanted=True, budget=0.06, config=config)
    gone = np.flatnonzero(np.asarray(info.left)[:, 0] <= 0.1)
    assert info.done[0]
    assert not info.reverted
    assert all(info.success[now + 1].max() <= 0.5 or not info.done[now + 1] for now in gone if now + 1 < 6)


def test_unlearning_stops_once_logits_of_plain_images_have_changed(planted):
    config = TriggerUnlearningConfig(
        rounds=4, triggers=2, inversion=InversionConfig(steps=12, starts=4), steps=8, distortion=1e-6
    )
    _, info = unlearned_additive(planted, wanted=True, budget=0.06, config=config)
    np.testing.assert_array_equal(info.done, [True, False, False, False])
    assert info.distortion[0] > 1e-6


def test_of_all_classes_the_most_anomalous_triggers_are_unlearned():
    families, clean = ("patch", "wave"), clean_evidence()
    sizes = jnp.ones((2, 4)).at[0, 3].set(0.1).at[1, 0].set(0.05).at[0, 1].set(0.2)
    rule = {"families": families, "threshold": 99.0, "share": 0.6, "budget": 0.5, "unlearn": "all"}
    anomalies = find_anomalies(sizes, jnp.ones(4), jnp.full(4, 0.25), clean_evidence=clean, **rule)
    minimal = MinimalTriggers(jnp.zeros((2, 4, 5)), sizes, jnp.arange(4))
    triggers = to_unlearn(anomalies, minimal, families, clean)
    assert {*zip(triggers.family.tolist(), triggers.target.tolist(), strict=True)} == {(0, 3), (1, 0)}
    assert triggers.wanted.all()
    np.testing.assert_allclose(triggers[2], [0.05, 0.1])


def test_clean_images_alternate_with_procedural_ones(planted):
    network, variables, batch = planted
    clean = jnp.arange(3 * 12 * 12 * 3, dtype=jnp.uint8).reshape(3, *SHAPE)
    mixed = disarm_clean.mix(batch, clean, network, variables)
    np.testing.assert_array_equal(mixed.images[::2], batch.images)
    np.testing.assert_array_equal(mixed.images[7], clean[0] / 255)
    np.testing.assert_array_equal(mixed.labels, jnp.argmax(network.answer(variables, mixed.images), -1))
    ours, theirs = (way.DEFENSE.plan(DisarmSettings()) for way in (disarm, disarm_clean))
    different = [
        their for our, their in zip(ours, theirs, strict=True) if (our.run, our.needs) != (their.run, their.needs)
    ]
    assert [(step.name, "clean" in step.needs) for step in different] == [("disarmed", True)]


SMALL = {
    "images": ImagesConfig(made=60, images=40),
    "inversion": InversionConfig(steps=2, images=8, starts=4, finalists=2),
    "margin": MarginConfig(steps=2, images=2),
    "unlearning": TriggerUnlearningConfig(
        rounds=1, triggers=2, inversion=InversionConfig(steps=2, images=8, starts=4), steps=2, batch_size=8
    ),
}


@pytest.mark.parametrize("way", ["disarm", "disarm_clean"])
def test_a_run_leaves_a_verdict_and_a_report(way, tmp_path):
    config = repaired_by(
        way, tiny_runs.OTBR, **SMALL, detection=DetectionConfig(families=("patch", "wave"), threshold=1e-6)
    )
    result = tiny_runs.run(tmp_path / "w", config)
    summary = summarize(result)
    assert [*summary["metrics"]] == ["victim", "disarmed"]
    verdict, measured = summary["verdict"], summary["detection"]
    assert (verdict["detector"], verdict["backdoored"]) == ("trigger_size", "no")  # so short a search finds nothing
    assert verdict["p_value"] is None
    assert "other settings of the search" in verdict["why_not"]
    assert {*verdict["evidence"]} == {"patch", "wave", "maximum_margin", "class_bias"}
    assert {*measured["trigger_size"]} == {"patch", "wave"}
    assert measured["family"] in measured["trigger_size"]
    assert len(measured["maximum_margin"]) == len(measured["class_bias"]) == len(verdict["scores"])
    assert verdict["scores"][verdict["suspect"]] == max(verdict["scores"]) == verdict["score"]
    assert json.loads((tmp_path / "w" / "metrics.json").read_text())["verdict"] == verdict
    assert (tmp_path / "w" / "report.html").read_text().count("Is it backdoored?") == 1
    again = tiny_runs.run(tmp_path / "w", config)
    assert tiny_runs.resumed(again) == {*again.stages}


def test_other_clean_networks_are_another_result(monkeypatch):
    """The evidence of clean networks is among the settings of the steps that use it, and so in their identity."""

    def hashed():
        return {step.name: json.dumps(plain(step.settings)) for step in disarm.plan(DisarmSettings())}

    before = hashed()
    file = copy.deepcopy(dict(read_calibration()))
    file["trigger_size"]["evidence"]["patch"][0] += 0.01
    monkeypatch.setattr("otbr_jax.detectors.calibration.read_calibration", lambda: file)
    after = hashed()
    assert [name for name in before if before[name] != after[name]] == ["detected", "disarmed"]
    file["trigger_size"]["networks"].pop()
    assert hashed() == after  # the p-value is no part of any step


def test_wrong_settings():
    with pytest.raises(InputError, match=r"^images.images: expected at most 10, images.made, found 20$"):
        ImagesConfig(made=10, images=20)
    with pytest.raises(
        InputError, match=r"^inversion.among: expected 0 for all classes, or at least 3 to compare, found 2"
    ):
        InversionConfig(among=2)
    with pytest.raises(InputError, match=r"^detection.families: expected at least one of"):
        DetectionConfig(families=())


def test_other_settings_than_the_calibrated_ones_have_no_p_value():
    default = DisarmSettings()
    assert detecting.is_calibrated(default)
    assert detecting.is_calibrated(dataclasses.replace(default, inversion=InversionConfig(classes=3)))
    assert detecting.is_calibrated(dataclasses.replace(default, unlearning=TriggerUnlearningConfig(rounds=1)))
    for other in (
        {"inversion": InversionConfig(steps=4)},
        {"inversion": InversionConfig(among=20)},
        {"images": ImagesConfig(images=60)},
        {"margin": MarginConfig(steps=2)},
        {"detection": DetectionConfig(families=("patch",))},
    ):
        assert not detecting.is_calibrated(dataclasses.replace(default, **other))
