"""Steps over many devices: each makes its own part, none is sent a batch or a data set, and all find what one finds."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from otbr_jax import InputError, otbr
from otbr_jax import plan as plans
from otbr_jax.defenses import disarm
from otbr_jax.defenses.otbr import OTBRConfig
from otbr_jax.defenses.otbr import plan as otbr_plan
from otbr_jax.detectors.trigger_size import DetectionConfig, ImagesConfig
from otbr_jax.inversion import InversionConfig
from otbr_jax.models.registry import ModelConfig
from otbr_jax.plan import set_up
from otbr_jax.runs.devices import (
    batch_mesh,
    check_batch_size,
    collectives,
    everywhere,
    first_devices,
    replicate,
    shared,
)
from otbr_jax.runs.networks import open_network
from otbr_jax.steps.margin import MarginConfig
from otbr_jax.steps.predictions import predict
from otbr_jax.steps.unlearn import UnlearningConfig
from otbr_jax.steps.unlearn_triggers import TriggerUnlearningConfig
from otbr_jax.victims.training import TrainingConfig, TrainingSet, programs

KEY = jax.random.key(8)
IMAGE = 8 * 8 * 4  # bytes of one image in float32
SEARCH = InversionConfig(steps=2, starts=8, finalists=2)
OTBR = OTBRConfig(unlearning=UnlearningConfig(steps=2, batch_size=64, learning_rate=1e-3))
DISARM = disarm.DisarmSettings(
    images=ImagesConfig(made=120, images=100),
    inversion=SEARCH,
    margin=MarginConfig(steps=2),
    detection=DetectionConfig(families=("patch", "generator"), threshold=0.1),
    unlearning=TriggerUnlearningConfig(rounds=1, triggers=2, inversion=SEARCH, steps=2),
)


def computed(plan, small, devices):
    """Every step of a plan: `{name: (compiled program, value)}`."""
    network, variables, graph = small
    mesh = batch_mesh(jax.devices()[:devices])
    setup, values, found = set_up(shared(network, mesh), graph), {"victim": variables}, {}
    for step in plan:
        key, inputs = replicate((jax.random.key(1), plans.select_inputs(step, values)), mesh)
        compute = jax.jit(partial(plans.compute, step, setup), out_shardings=everywhere(mesh))
        program = compute.lower(key=key, **inputs).compile()
        values[step.name] = jax.device_get(program(key=key, **inputs))
        found[step.name] = program, values[step.name]
    return found


@pytest.mark.parametrize("plan", [otbr_plan(OTBR), disarm.plan(DISARM)], ids=["otbr", "disarm"])
def test_devices_tell_each_other_gradients_and_answers_alone(small, plan):
    one, eight = computed(plan, small, 1), computed(plan, small, 8)
    shared_work = {"unlearned", "procedural", "screened", "minimal", "margins", "disarmed"}
    for name, (program, value) in eight.items():
        told = collectives(program)
        assert bool(told) == (name in shared_work), (name, told)
        assert {*told} <= {"all-reduce", "all-gather"}
        # What is gathered are logits, classes and places in a list; what is summed, gradients. No batch of images.
        assert "all-gather" not in told or told["all-gather"].largest < 16 * IMAGE
        assert "all-reduce" not in told or told["all-reduce"].largest < 100 * IMAGE
        same(value, one[name][1])


def test_wide_layers_neither():
    """On CPUs their kernel gradients are products over chunks of images, where nobody shares them."""
    subject, mesh = (
        open_network(ModelConfig("vgg7_bn", width=64, depth=(1, 1, 1, 1), image_shape=(8, 8, 1))),
        batch_mesh(),
    )
    setup, config = set_up(shared(subject.network, mesh), subject.graph), UnlearningConfig(steps=1, batch_size=64)
    (step, *_) = otbr_plan(OTBRConfig(unlearning=config))
    given = replicate((jax.random.key(0), jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), subject.like)), mesh)
    compute = jax.jit(lambda key, victim: plans.compute(step, setup, key=key, victim=victim))
    assert {*collectives(compute.lower(*given).compile())} == {"all-reduce"}


def test_an_epoch_of_training_neither(small):
    network, variables, _ = small
    mesh, config = batch_mesh(), TrainingConfig(batch_size=64, crop_padding=1, flip=True)
    begin, epoch = programs(shared(network, mesh), images=192, config=config, mesh=mesh)
    images, labels = jnp.zeros((192, 8, 8, 1), jnp.uint8), jnp.zeros(192, jnp.int32)
    given = replicate((jax.random.key(0), TrainingSet(images, labels, labels), {}), mesh)
    carry = jax.eval_shape(begin, replicate(variables, mesh), {})
    told = collectives(epoch.lower(carry, *given).compile())
    assert {*told} == {"all-reduce"}
    assert told["all-reduce"].largest < 64 * 64  # bytes; a batch has as many pixels


def same(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=3e-2), found, expected)


def test_any_number_of_devices_unlearns_as_one_does(small):
    one, *others = (computed(otbr_plan(OTBR)[:2], small, devices) for devices in (1, 2, 4))
    for some in others:
        for name, (_, value) in some.items():
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), value, one[name][1])


def test_a_batch_that_devices_cannot_share_stays_whole(small):
    network, variables, _ = small
    images = jax.random.uniform(jax.random.key(0), (13, 8, 8, 1))
    parted = shared(network, batch_mesh())
    for count in (1, 5, 13):
        expected = jax.jit(lambda x: predict(network, variables, x))(images[:count])
        np.testing.assert_array_equal(jax.jit(lambda x: predict(parted, variables, x))(images[:count]), expected)
        logits, _ = jax.jit(lambda x: parted.train(variables, x))(images[:count])
        plain, _ = jax.jit(lambda x: network.train(variables, x))(images[:count])
        np.testing.assert_allclose(logits, plain, rtol=1e-4, atol=1e-4)


def mapped(function, checked):
    """In a user's own map over four devices: `jax.pmap`, and `jax.shard_map` with its checks or without."""
    if checked is None:
        return lambda v: jax.tree.map(
            lambda leaf: leaf[3],
            jax.pmap(lambda _, v: function(v), axis_name="devices", in_axes=(0, None))(jnp.arange(4), v),
        )
    mesh = jax.make_mesh((4,), ("devices",), devices=jax.devices()[:4])
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=checked))


@pytest.fixture(scope="module")
def alone(small):
    """What `otbr` and `disarm` find on one device."""
    network, variables, graph = small
    return {
        function: jax.jit(partial(function, network, graph=graph, key=KEY, config=config))(variables)
        for function, config in ((otbr, OTBR), (disarm.disarm, DISARM))
    }


@pytest.mark.parametrize("checked", [None, False, True], ids=["pmap", "shard_map", "shard_map, checked"])
def test_otbr_in_a_users_map(small, synchronised, alone, checked):
    _, variables, graph = small
    one, info = alone[otbr]
    found, found_info = mapped(
        lambda v: otbr(synchronised, v, graph, key=KEY, config=OTBR, axis_name="devices"), checked
    )(variables)
    for name, scores in info.scores.items():
        np.testing.assert_allclose(found_info.scores[name], scores, rtol=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), found, one)


def test_disarm_in_a_users_map(small, alone):
    network, variables, graph = small
    one, anomalies = alone[disarm.disarm]
    found, found_anomalies = mapped(
        lambda v: disarm.disarm(network, v, graph, key=KEY, config=DISARM, axis_name="devices"), checked=True
    )(variables)
    np.testing.assert_allclose(found_anomalies.detected.scores, anomalies.detected.scores, rtol=1e-2, atol=1e-2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-2), found, one)


def test_more_devices_than_there_are():
    assert first_devices(0) is None
    assert first_devices(3) == jax.local_devices()[:3]
    with pytest.raises(InputError, match=r"^--devices: expected at most 8, as many as there are \(cpu\), found 9"):
        first_devices(9)


def test_a_batch_says_what_would_fit():
    with pytest.raises(InputError, match="x.batch_size: .* 8 devices, such as 16 or 24, found 20; or take fewer"):
        check_batch_size(20, batch_mesh(), name="x.batch_size")
    with pytest.raises(InputError, match="such as 8, found 5"):
        check_batch_size(5, batch_mesh(), name="x.batch_size")
