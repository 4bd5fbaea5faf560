"""Disarm: pictures, families within their budgets, a planted short cut found and taught away, a whole run."""

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
from otbr_jax.detectors.anomalies import ANSWERS, MARGIN, Anomalies, find_anomalies, size_anomalies
from otbr_jax.detectors.calibration import read_calibration
from otbr_jax.detectors.trigger_size import DetectionConfig, ImagesConfig, usual_evidence
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
def pictures():
    return jax.jit(lambda key: procedural(key, images=96, image_shape=SHAPE))(jax.random.key(0))


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 14, 4)])
def test_pictures_of_any_shape(shape):
    make = jax.jit(lambda key: procedural(key, images=7, image_shape=shape))
    made = make(jax.random.key(3))
    assert made.shape == (7, *shape)
    assert 0 <= made.min() < 0.3 < 0.7 < made.max() <= 1
    np.testing.assert_array_equal(made, make(jax.random.key(3)))
    assert len({float(picture.mean()) for picture in made}) == 7


def test_pictures_are_balanced_by_answers():
    answers = jnp.array([0] * 900 + [1] * 90 + [2] * 2)
    taken = balanced_sample(answers, classes=4, images=400, key=jax.random.key(0))
    first, last = (jnp.bincount(answers[part], length=4) for part in (taken[:200], taken[200:]))
    for count in (first, last):  # from beginning to end: a search takes them in turn
        assert 70 < count[0] < 120
        assert 70 < count[1] < 120
        assert 0 < count[2] < 20
        assert count[3] == 0


def test_one_logit_is_refused(planted):
    with pytest.raises(InputError, match=r"^model.num_classes: expected at least 2"):
        check_classes(dataclasses.replace(planted[0], num_classes=1))


def test_of_two_classes_none_is_flagged():
    costs = jnp.array([[0.001, 0.9]])
    found = find_anomalies(
        costs,
        jnp.ones(2),
        jnp.array([0.9, 0.1]),
        usual=usual_evidence(),
        families=("patch",),
        threshold=0.1,
        share=0.6,
        budget=0.5,
        closed="suspect",
    )
    assert float(found.detected.scores[0]) > 1
    assert not found.detected.flagged
    assert not found.wanted.any()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trigger_stays_within_its_budget(name, pictures):
    family, switch = FAMILIES[name], FamilySwitch(tuple(FAMILIES.values()), SHAPE)
    index = [*FAMILIES].index(name)
    latent = jax.tree.map(lambda leaf: 3 * leaf + 0.1, family.init(jax.random.key(1), SHAPE))
    low, high = family.bounds
    assert low < family.start < high
    apply = jax.jit(family.apply)
    middle = 0.3 + 0.4 * pictures[:8]  # far from 0 and 1, where nothing is cut off
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
def planted(pictures):
    """(network, variables, pictures with answers): a linear classifier, in which a faint pattern means class 1."""

    def apply(variables, images):
        params = variables["params"]
        blocks = images.reshape(-1, 4, 3, 4, 3, 3).mean((2, 4)).reshape(len(images), -1) - 0.5
        pattern = ((images - 0.5) * HIDDEN).mean((1, 2, 3))
        return blocks @ params["kernel"] + pattern[:, None] * params["gain"]

    kernel = 1.0 * jax.random.normal(jax.random.key(5), (48, 4))
    variables = {"params": {"kernel": kernel, "gain": jnp.array([0.0, 100.0, 0.0, 0.0])}}
    network = Network(apply, SHAPE, 4)
    return network, variables, Batch(pictures, jnp.argmax(network.answer(variables, pictures), -1).astype(jnp.int32))


def searched(network, variables, batch, switch, config):
    """ScreenedClasses and searched with one key."""
    key, answers = jax.random.key(0), jnp.bincount(batch.labels, length=network.num_classes) / len(batch.labels)
    screened = screen(network, variables, batch, answers, switch, key=key, config=config)
    return minimal_triggers(network, variables, batch, switch, screened, key=key, config=config)


def test_a_planted_short_cut_is_found_and_taught_away(planted):
    network, variables, batch = planted
    switch = FamilySwitch((FAMILIES["patch"], FAMILIES["additive"], FAMILIES["warp"]), SHAPE)
    config = InversionConfig(steps=30, starts=8, finalists=2)
    found = jax.jit(lambda v: searched(network, v, batch, switch, config))(variables)
    assert found.size.shape == (3, 4)
    assert jnp.argmin(found.size[1]) == 1
    margins = maximum_margins(network, variables, key=jax.random.key(2), config=MarginConfig(steps=20, images=2))
    assert jnp.argmax(margins) == 1
    answers = jnp.bincount(batch.labels, length=4) / len(batch.labels)
    families = ("patch", "additive", "warp")
    usual = usual_evidence()
    rule = {"families": families, "threshold": 0.5, "share": 0.1, "budget": 0.6, "closed": "suspect", "usual": usual}
    anomalies = find_anomalies(found.size, margins, answers, **rule)
    (_, suspect, flagged), wanted = anomalies.detected, anomalies.wanted
    assert (suspect, bool(flagged), bool(wanted[1, 1])) == (1, True, True)

    stamped = jnp.clip(batch.images + 0.03 * HIDDEN, 0, 1)
    others = batch.labels != 1

    def turned(v):
        return float(jnp.mean((jnp.argmax(network.answer(v, stamped), -1) == 1)[others]))

    lessons = TriggerUnlearningConfig(
        rounds=5, triggers=4, inversion=config, steps=150, batch_size=32, learning_rate=1e-1
    )
    taught, info = jax.jit(
        lambda v, closing: unlearn_triggers(network, v, batch, switch, closing, key=jax.random.key(1), config=lessons)
    )(variables, to_unlearn(anomalies._replace(wanted=wanted.at[::2].set(False)), found, families, usual))
    assert turned(variables) > 0.6
    assert turned(taught) < 0.5 * turned(variables)
    kept = jnp.argmax(network.answer(taught, batch.images), -1) == batch.labels
    assert jnp.mean(kept) > 0.8
    assert info.done[0]
    assert not info.success[:, 1:].any()


def taught_additive(planted, *, wanted, budget, config):
    """(variables, info) of the planted network, after lessons against class 1's additive triggers if `wanted`."""
    network, variables, batch = planted
    switch = FamilySwitch((FAMILIES["additive"],), SHAPE)
    zero, one = jnp.array([0]), jnp.array([1])
    closing = TriggersToUnlearn(
        zero, one, jnp.array([budget]), jnp.array([budget]), jnp.ones((1, switch.length)), jnp.array([wanted])
    )

    @jax.jit
    def lessons(variables):
        return unlearn_triggers(network, variables, batch, switch, closing, key=jax.random.key(0), config=config)

    return lessons(variables)


def test_nothing_wanted_is_nothing_changed(planted):
    config = TriggerUnlearningConfig(rounds=2, triggers=2, inversion=InversionConfig(steps=2, starts=2), steps=2)
    same, info = taught_additive(planted, wanted=False, budget=0.1, config=config)
    chex.assert_trees_all_equal(same, planted[1], strict=True)
    assert not info.done.any()
    one = jnp.zeros(1)
    closing = TriggersToUnlearn(one, one, one, one, one, jnp.zeros(1, bool))
    at_once = jax.jit(lambda variables: unlearn_nothing(variables, closing, config=config))(planted[1])[1]
    chex.assert_trees_all_equal(at_once, info, strict=True)


def test_lessons_are_compiled_only_where_a_class_is_flagged():
    """Else a smaller function takes their place, which `test_nothing_wanted_is_nothing_changed` compares with them."""
    step = disarm.plan(DisarmSettings())[-2]
    with_it, without = (Anomalies(*[None] * 3, np.array(wanted), None) for wanted in ([[True]], [[False]]))
    assert plan.shorten(step, {"detected": with_it}) == step
    other = plan.shorten(step, {"detected": without})
    assert (other.run, other.shown.work) == (disarm.leave_alone, None)


def test_searches_in_chunks_are_the_same(planted):
    network, variables, batch = planted
    switch = FamilySwitch((FAMILIES["low_frequency"],), SHAPE)
    settings = InversionConfig(steps=3, starts=4, finalists=3)

    def costs(at_once):
        config = dataclasses.replace(settings, classes=at_once)
        return searched(network, variables, batch, switch, config).size

    np.testing.assert_allclose(costs(3), costs(20), rtol=1e-5)


def test_of_some_classes_each_is_searched_as_among_all(planted):
    """Screening keeps the class of a short cut, and does not change what a search finds."""
    network, variables, batch = planted
    switch = FamilySwitch((FAMILIES["additive"], FAMILIES["wave"]), SHAPE)
    config = InversionConfig(steps=4, starts=8, finalists=4)
    few, all_of_them = (
        jax.jit(partial(searched, network, variables, batch, switch, dataclasses.replace(config, among=among)))()
        for among in (3, 0)
    )
    assert 1 in few.classes
    assert jnp.all(jnp.diff(few.classes) > 0)
    assert few.flat_latent.shape == (2, 3, switch.length)
    np.testing.assert_allclose(few.size, all_of_them.size[:, few.classes], rtol=1e-5)


def test_fewer_classes_are_searched_at_once_where_layers_put_out_much(planted):
    network, variables, _ = planted
    assert classes_at_once(network, variables, InversionConfig(images=16)) == 20
    assert flops_of(network, variables) == (2 * 48 * 4, 4 * 4)
    assert classes_at_once(network, variables, InversionConfig(images=10_000_000)) == 12
    assert classes_at_once(network, variables, InversionConfig(images=10**9)) == 1


def test_out_of_line_by_hand():
    even = jnp.exp(jnp.array([0.0, 1.0, 2.0])[:, None] + jnp.array([0.0, 0.3, 0.6, 0.9])[None, :])
    for row in size_anomalies(even):  # families differ, and count for nothing; classes by no more than they do
        np.testing.assert_allclose(row, [0.45, 0.15, 0, 0], atol=1e-5)
    short = size_anomalies(even.at[1, 2].multiply(jnp.exp(-2.0)))
    assert jnp.unravel_index(jnp.argmax(short), short.shape) == (1, 2)
    assert short[1, 2] > 1.5
    np.testing.assert_allclose(size_anomalies(jnp.array([[1.0, jnp.e, jnp.e]])), [[1, 0, 0]], atol=1e-6)


def test_every_kind_of_evidence_has_its_usual():
    assert {*usual_evidence()} == {*FAMILIES, MARGIN, ANSWERS}


def test_scores_by_hand():
    """All kinds count together, each by how far it is over what is usual; falling short of it counts for nothing."""
    families = ("patch", "wave")
    even, answers = jnp.ones((2, 5)), jnp.full(5, 0.2)

    def find(costs, margins, *, threshold=3.0, closed="suspect"):
        rule = {"families": families, "threshold": threshold, "share": 0.6, "budget": 0.5, "closed": closed}
        return find_anomalies(costs, margins, answers, usual=usual_evidence(), **rule)

    assert not find(even, jnp.ones(5)).detected.scores.any()
    unreachable = find(even, jnp.array([3.0, -1, -1, -1, -1]))  # half of the classes can never be the answer
    assert not unreachable.detected.scores.any()
    (patch, spread), (margin, margin_spread) = (usual_evidence()[kind] for kind in ("patch", MARGIN))
    costs = even.at[0, 3].set(jnp.exp(-patch - 2 * spread))
    margins = jnp.ones(5).at[3].set(jnp.exp(margin + 1.5 * margin_spread))
    found = find(costs, margins)
    np.testing.assert_allclose(found.detected.scores[3], 2.5, rtol=1e-4)
    assert (found.detected.suspect, bool(found.detected.flagged)) == (3, False)
    assert not found.wanted.any()
    for wanted in (find(costs, margins, threshold=2.0), find(costs, margins, closed="all")):
        np.testing.assert_array_equal(jnp.argwhere(wanted.wanted), [[0, 3]])
    np.testing.assert_allclose(found.budget[0, 3], jnp.sqrt(costs[0, 3]), rtol=1e-5)  # halfway, as logarithms
    np.testing.assert_allclose(found.budget[1, 3], 1.2, rtol=1e-5)  # above what the suspect costs


def test_a_class_that_is_no_short_cut_is_left_as_it_is(planted):
    """Lessons against triggers so large that they are the class itself stay in vain, and are undone."""
    config = TriggerUnlearningConfig(
        rounds=2, triggers=2, inversion=InversionConfig(steps=12, starts=4), steps=2, learning_rate=1e-4
    )
    same, info = taught_additive(planted, wanted=True, budget=0.3, config=config)
    jax.tree.map(np.testing.assert_array_equal, same, planted[1])
    assert info.done.all()
    assert info.reverted


def test_what_is_new_once_first_triggers_are_gone_is_not_taught(planted):
    """A search that goes on finding triggers after those found first are gone has come to the class itself."""
    config = TriggerUnlearningConfig(
        rounds=6,
        triggers=2,
        inversion=InversionConfig(steps=12, starts=4),
        steps=20,
        learning_rate=3e-2,
        distortion=1e9,
    )
    _, info = taught_additive(planted, wanted=True, budget=0.06, config=config)
    gone = np.flatnonzero(np.asarray(info.left)[:, 0] <= 0.1)
    assert info.done[0]
    assert not info.reverted
    assert all(info.success[now + 1].max() <= 0.5 or not info.done[now + 1] for now in gone if now + 1 < 6)


def test_lessons_end_once_plain_pictures_have_moved(planted):
    config = TriggerUnlearningConfig(
        rounds=4, triggers=2, inversion=InversionConfig(steps=12, starts=4), steps=8, distortion=1e-6
    )
    _, info = taught_additive(planted, wanted=True, budget=0.06, config=config)
    np.testing.assert_array_equal(info.done, [True, False, False, False])
    assert info.distortion[0] > 1e-6


def test_short_cuts_of_all_classes_are_the_most_telling_ones():
    families = ("patch", "wave")
    costs = jnp.ones((2, 4)).at[0, 3].set(0.1).at[1, 0].set(0.05).at[0, 1].set(0.2)
    rule = {"families": families, "threshold": 99.0, "share": 0.6, "budget": 0.5, "closed": "all"}
    usual = usual_evidence()
    found = find_anomalies(costs, jnp.ones(4), jnp.full(4, 0.25), usual=usual, **rule)
    closing = to_unlearn(found, MinimalTriggers(jnp.zeros((2, 4, 5)), costs, jnp.arange(4)), families, usual)
    assert {*zip(closing.family.tolist(), closing.target.tolist(), strict=True)} == {(0, 3), (1, 0)}
    assert closing.wanted.all()
    np.testing.assert_allclose(closing.cost, [0.05, 0.1])


def test_clean_images_stand_beside_the_pictures(planted):
    network, variables, batch = planted
    clean = jnp.arange(3 * 12 * 12 * 3, dtype=jnp.uint8).reshape(3, *SHAPE)
    mixed = disarm_clean.beside(batch, clean, network, variables)
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
    assert {*verdict["evidence"]} == {"patch", "wave", "margin", "answers"}
    assert {*measured["trigger_size"]} == {"patch", "wave"}
    assert measured["family"] in measured["trigger_size"]
    assert len(measured["margin"]) == len(measured["answers"]) == len(verdict["scores"])
    assert verdict["scores"][verdict["suspect"]] == max(verdict["scores"]) == verdict["score"]
    assert json.loads((tmp_path / "w" / "metrics.json").read_text())["verdict"] == verdict
    assert (tmp_path / "w" / "report.html").read_text().count("Is it backdoored?") == 1
    again = tiny_runs.run(tmp_path / "w", config)
    assert tiny_runs.resumed(again) == {*again.stages}


def test_other_clean_networks_are_another_result(monkeypatch):
    """The usual evidence is among the settings of the steps that count in it, and so in what their results hang on."""

    def hashed():
        return {step.name: json.dumps(plain(step.settings)) for step in disarm.plan(DisarmSettings())}

    before = hashed()
    file = copy.deepcopy(dict(read_calibration()))
    file["trigger_size"]["usual"]["patch"][0] += 0.01
    monkeypatch.setattr("otbr_jax.detectors.calibration.read_calibration", lambda: file)
    after = hashed()
    assert [name for name in before if before[name] != after[name]] == ["detected", "disarmed"]
    file["trigger_size"]["networks"].pop()
    assert hashed() == after  # the p-value is no part of any step


def test_wrong_settings():
    with pytest.raises(InputError, match=r"^pictures.images: expected at most 10, images.made, found 20$"):
        ImagesConfig(made=10, images=20)
    with pytest.raises(
        InputError, match=r"^inversion.among: expected 0 for all classes, or at least 3 to compare, found 2"
    ):
        InversionConfig(among=2)
    with pytest.raises(InputError, match=r"^detection.families: expected at least one of"):
        DetectionConfig(families=())


def test_another_search_than_the_calibrated_one_has_no_p_value():
    usual = DisarmSettings()
    assert detecting.is_calibrated(usual)
    assert detecting.is_calibrated(dataclasses.replace(usual, inversion=InversionConfig(classes=3)))
    assert detecting.is_calibrated(dataclasses.replace(usual, unlearning=TriggerUnlearningConfig(rounds=1)))
    for other in (
        {"inversion": InversionConfig(steps=4)},
        {"inversion": InversionConfig(among=20)},
        {"images": ImagesConfig(images=60)},
        {"margin": MarginConfig(steps=2)},
        {"detection": DetectionConfig(families=("patch",))},
    ):
        assert not detecting.is_calibrated(dataclasses.replace(usual, **other))
