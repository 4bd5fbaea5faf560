"""What a plan promises: a step is given what it needs and nothing else, with a key of its own name."""

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otbr_jax import InputError, Layer, LongStep, Network, NeuronGraph, Setup, Step, run, set_up
from otbr_jax.contrib.distill import DistillationConfig
from otbr_jax.contrib.otbr_plus import OTBRSettings
from otbr_jax.contrib.pruning_detection import PruningDetectionConfig
from otbr_jax.contrib.trigger_finetuning import TriggerFinetuningConfig
from otbr_jax.defenses.registry import DEFENSES
from otbr_jax.defenses.tsbd import TSBDSettings
from otbr_jax.plan import ROOT, compute, named_key, needs, select_inputs, step_key
from otbr_jax.steps.select import SelectionConfig

GRAPH = NeuronGraph((Layer("params/first", "dense", (1,), (0,), 3, 4),))
SETUP = set_up(Network(lambda v, x: x, (1, 1, 1), 2), GRAPH, layers="hidden")
KEY = jax.random.key(7)
GIVEN = {"victim": jnp.arange(4.0), "secret": jnp.ones(2)}


def doubled(setup, settings, *, victim, key, report):
    assert report is None
    return settings * victim + jax.random.normal(key, victim.shape)


def summed(setup, settings, *, first, second, **_):
    return {"sum": jnp.sin(first).sum() + second.sum(), "neurons": jnp.int32(setup.neurons)}


PLAN = (
    Step("doubled", doubled, needs("victim"), 2.0),
    Step("summed", summed, needs(first="doubled", second="victim")),
)


def test_a_step_is_given_what_it_needs_its_settings_and_nothing_else():
    seen = []

    def looking(setup, settings, **given):
        seen.append((setup, settings, sorted(given)))
        return given["argument"]

    values = run((Step("looking", looking, needs(argument="victim"), "settings"),), SETUP, GIVEN, key=KEY)
    assert seen == [(SETUP, "settings", ["argument", "key", "report"])]
    assert [*values] == ["looking"]  # not what was given
    np.testing.assert_array_equal(values["looking"], GIVEN["victim"])
    assert {**select_inputs(PLAN[1], {**GIVEN, "doubled": 1})} == {"first": 1, "second": GIVEN["victim"]}


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (PLAN[1:], r"plan: step 'summed' expects 'doubled' before it, found \['secret', 'victim'\]"),
        (PLAN[::-1], "plan: step 'summed' expects 'doubled' before it"),
        (
            (dataclasses.replace(PLAN[0], needs=needs("victim", "clean")),),
            r"plan: step 'doubled' expects 'clean' before it, found \['secret', 'victim'\]",
        ),
    ],
)
def test_what_is_missing_is_named(plan, message):
    with pytest.raises(InputError, match=message):
        run(plan, SETUP, GIVEN, key=KEY)


def test_keys_come_from_names_alone():
    def key_of(setup, settings, *, key, report):
        return jax.random.key_data(key)

    steps = Step("one", key_of), Step("two", key_of), Step("three", key_of, key="one"), Step("four", key_of, key=ROOT)
    values = run(steps, SETUP, {}, key=KEY)
    expected = {name: jax.random.fold_in(KEY, zlib.crc32(name.encode())) for name in ("one", "two")}
    expected |= {"three": expected["one"], "four": KEY}
    for step in steps:
        np.testing.assert_array_equal(values[step.name], jax.random.key_data(expected[step.name]))
        np.testing.assert_array_equal(*map(jax.random.key_data, (step_key(KEY, step), expected[step.name])))
    np.testing.assert_array_equal(*map(jax.random.key_data, (named_key(KEY, "one"), expected["one"])))
    # Neither the order nor what else there is matters.
    for name, value in run(steps[2::-1], SETUP, {}, key=KEY).items():
        np.testing.assert_array_equal(value, values[name])


def test_a_plan_jits():
    plain = run(PLAN, SETUP, GIVEN, key=KEY)
    jitted = jax.jit(lambda given, key: run(PLAN, SETUP, given, key=key))(GIVEN, KEY)
    assert jax.tree.structure(jitted) == jax.tree.structure(plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), jitted, plain)
    by_hand = doubled(SETUP, 2.0, victim=GIVEN["victim"], key=named_key(KEY, "doubled"), report=None)
    np.testing.assert_allclose(plain["doubled"], by_hand, rtol=1e-6)
    assert int(plain["summed"]["neurons"]) == 3


def halving(end):
    """Goes half of the way to the victim in each round, with noise, until so many rounds are over or it is near."""

    def init(setup, settings, *, victim, key):
        return jnp.zeros_like(victim), jnp.int32(0)

    def body(setup, settings, state, *, victim, key):
        place, count = state
        noise = 1e-3 * jax.random.normal(jax.random.fold_in(key, count), place.shape)
        return ((place + victim) / 2 + noise, count + 1), {"place": place[0]}

    def done(setup, settings, state):
        return state[1] >= settings

    return LongStep(
        "halved",
        lambda setup, settings, state: {"place": state[0], "rounds": state[1]},
        needs("victim"),
        end,
        init=init,
        body=body,
        done=done,
        count=lambda state: state[1],
    )


@pytest.mark.parametrize("rounds", [0, 1, 5])
def test_a_long_step_is_a_loop(rounds):
    step, victim = halving(rounds), GIVEN["victim"]
    values = run((step,), SETUP, GIVEN, key=KEY)["halved"]
    key = step_key(KEY, step)
    state = step.init(SETUP, rounds, victim=victim, key=key)
    while not step.done(SETUP, rounds, state):
        state, shown = step.body(SETUP, rounds, state, victim=victim, key=key)
        assert [*shown] == ["place"]
    assert int(values["rounds"]) == step.count(state) == rounds
    np.testing.assert_allclose(values["place"], state[0], rtol=1e-6)
    jitted = jax.jit(lambda victim: compute(step, SETUP, key=key, victim=victim))(victim)
    np.testing.assert_allclose(jitted["place"], state[0], rtol=1e-6)


def test_values_are_checked_on_the_host_alone():
    checked = []

    def check(settings, value):
        checked.append((settings, np.asarray(value).tolist()))
        if settings == "refuse":
            raise InputError("value: expected another")

    def plan(settings):
        step = Step("same", lambda setup, settings, *, victim, **_: victim, needs("victim"), settings, check=check)
        return (step, dataclasses.replace(step, name="later"))

    given = {"victim": jnp.arange(2.0)}
    run(plan("take"), SETUP, given, key=KEY)
    assert checked == [("take", [0, 1])] * 2
    checked.clear()
    with pytest.raises(InputError, match="value: expected another"):
        run(plan("refuse"), SETUP, given, key=KEY)
    assert len(checked) == 1  # nothing runs after what cannot be used
    checked.clear()
    jax.jit(lambda given: run(plan("refuse"), SETUP, given, key=KEY))(given)
    assert not checked


def test_a_setup_knows_its_layers():
    assert (SETUP.layers, SETUP.neurons) == (GRAPH.layers, 3)
    with pytest.raises(InputError, match="layers: expected convolutions layers .* found none"):
        set_up(SETUP.network, GRAPH, layers="convolutions")
    with pytest.raises(dataclasses.FrozenInstanceError):
        SETUP.layers = ()
    assert isinstance(SETUP, Setup)


DETECTION = PruningDetectionConfig(gamma=(0.1,))
CONFIGS = {
    "otbr": OTBRSettings(),
    "distilled": OTBRSettings(detection=DETECTION, distillation=DistillationConfig("labels")),
    "trigger_finetuned": OTBRSettings(detection=DETECTION, trigger_finetuning=TriggerFinetuningConfig(triggers=1)),
    "tsbd": TSBDSettings(),
    "selected": TSBDSettings(detection=DETECTION, selection=SelectionConfig(n=(0.1,))),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_plans_of_all_defences_are_in_order_and_their_networks_are_steps(name):
    config = CONFIGS[name]
    (way,) = (defense for defense in DEFENSES.values() if type(config) is defense.Config)
    plan = way.plan(config)
    known = {"victim"} | ({"clean", "folds"} if way.data == "clean images" else set())
    for step in plan:
        assert set(step.needs.values()) <= known, step.name
        known.add(step.name)
        assert step.shown.title
    networks = way.networks(config)
    assert networks[0] == "victim"
    assert set(networks[1:]) < known
    assert networks[-1] == plan[-1].name
