"""A stack of networks under one `vmap`: each of them becomes what it becomes alone."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from two_classes import NETWORK, init

from otbr_jax import InputError, OTBRConfig, Step, UnlearningConfig, run, set_up, trace
from otbr_jax.attacks.attack import InTraining
from otbr_jax.data.sources import DataConfig, preprocess
from otbr_jax.defenses.otbr import plan
from otbr_jax.plan import named_key, needs, stack_trees, stacked_programs, tree_entry
from otbr_jax.runs.devices import batch_mesh
from otbr_jax.victims import training
from otbr_jax.victims.stacking import train_stack
from otbr_jax.victims.training import TrainingConfig, TrainingSet

CONFIG = TrainingConfig(epochs=2, batch_size=16, learning_rate=0.02, crop_padding=1, flip=True)
MESH = batch_mesh(jax.local_devices()[:1])
KEYS = jax.random.split(jax.random.key(1), 2)


@pytest.fixture(scope="module")
def two():
    """(network, variables of two)."""
    prepared = dataclasses.replace(NETWORK, prepare=lambda images: preprocess(images, DataConfig(name="none")))
    return prepared, [init(jax.random.key(seed)) for seed in (0, 1)]


def data(poison=0):
    images = jax.random.randint(jax.random.key(0), (40, 8, 8, 1), 0, 256).astype(jnp.uint8)
    labels = (images.mean((1, 2, 3)) > 127).astype(jnp.int32)
    return TrainingSet(images.at[:poison, :2].set(255), labels.at[:poison].set(0), jnp.zeros_like(labels))


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), one, other)


@pytest.mark.parametrize("poison", [0, 9])  # images that both share, and images of their own
def test_a_stack_learns_what_each_learns_alone(two, poison):
    network, starts = two
    sets = [data(), data(poison)]
    shown = []
    trained = train_stack(
        network, starts, sets, keys=KEYS, config=CONFIG, mesh=MESH, on_epoch=lambda **values: shown.append(values)
    )
    for one, start, own, key in zip(trained, starts, sets, KEYS, strict=True):
        alone = training.train(network, start, own, key=key, config=CONFIG, mesh=MESH)
        assert_close(one.variables, alone.variables)
        assert_close(one.history.loss, alone.history.loss)
        assert one.history.acc.shape == alone.history.acc.shape
    assert shown[-1]["loss"] == pytest.approx(np.mean([one.history.loss[-1] for one in trained]), rel=1e-6)
    assert trained[0].images_per_second == trained[1].images_per_second > 0


def test_an_attack_that_trains_along_has_arrays_of_each(two):
    def poison(assets, images, labels, goals, key):
        return images + assets["fixed"] * assets["moving"], labels, jnp.sum(jnp.square(assets["moving"] - 1))

    network, starts = two
    attack = InTraining(poison, trained=("moving",), optimizer=lambda steps: optax.sgd(0.02))
    assets = [{"fixed": jnp.float32(fixed), "moving": jnp.zeros((8, 8, 1))} for fixed in (0.1, 0.3)]
    options = {"config": CONFIG, "mesh": MESH, "attack": attack}
    trained = train_stack(network, starts, [data(), data()], keys=KEYS, assets=assets, **options)
    for one, start, own, key in zip(trained, starts, assets, KEYS, strict=True):
        alone = training.train(network, start, data(), key=key, assets=own, **options)
        assert_close(one.assets, alone.assets)
        assert_close(one.variables, alone.variables)


def test_what_does_not_make_a_stack(two):
    network, starts = two
    few = TrainingSet(*(array[:30] for array in data()))
    for variables, sets, message in [
        (starts[:1], [data()] * 2, "expected equally many of each, found 1 networks, 2 data sets, 2 attacks' arrays"),
        (
            starts,
            [data(), few],
            "train_stack: data: expected the shapes of the first network's, found others at index 1",
        ),
        ([starts[0], {"params": starts[1]["params"]}], [data()] * 2, "train_stack: variables: expected the shapes of"),
    ]:
        with pytest.raises(InputError, match=re.escape(message)):
            train_stack(network, variables, sets, keys=KEYS, config=CONFIG, mesh=MESH)


def test_a_stack_is_repaired_as_each_is_alone(two):
    network, starts = two
    graph = trace(network.apply, starts[0], jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32))
    steps = plan(OTBRConfig(unlearning=UnlearningConfig(steps=3, batch_size=8), gamma=0.25))
    setup = set_up(network, graph)
    programs = stacked_programs(steps, setup)
    values = programs({"victim": stack_trees(starts)}, {}, keys=KEYS)
    assert [*values] == ["unlearned", "scores", "pruned", "fused"]
    for index, (start, key) in enumerate(zip(starts, KEYS, strict=True)):
        assert_close(tree_entry(values, index), run(steps, setup, {"victim": start}, key=key))


def test_what_is_shared_has_no_axis_and_each_value_is_checked(two):
    network, starts = two
    graph = trace(network.apply, starts[0], jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32))
    checked = []

    def summed(setup, settings, *, victim, clean, key, report):
        assert clean.shape == (3,)
        return victim * clean.sum() + jax.random.uniform(key)

    def check(settings, value):
        checked.append(float(value))
        if value > settings:
            raise InputError("summed: expected less")

    steps = (
        Step("summed", summed, needs("victim", "clean"), 100.0, check=check),
        Step("keyed", lambda setup, settings, *, key, report: jax.random.key_data(key)),
    )
    programs = stacked_programs(steps, set_up(network, graph))
    shared = {"clean": jnp.ones(3)}
    values = programs({"victim": jnp.array([1.0, 2.0])}, shared, keys=KEYS)
    np.testing.assert_allclose(checked, values["summed"])
    for index, key in enumerate(KEYS):
        expected = 3 * (index + 1) + jax.random.uniform(named_key(key, "summed"))
        np.testing.assert_allclose(values["summed"][index], expected, rtol=1e-6)
        np.testing.assert_array_equal(values["keyed"][index], jax.random.key_data(named_key(key, "keyed")))
    with pytest.raises(InputError, match="summed: expected less"):
        programs({"victim": jnp.array([1.0, 200.0])}, shared, keys=KEYS)
