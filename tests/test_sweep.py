"""The grid gamma x lambda as one program: the same as its settings one by one, compiled once."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import VICTIM

from otbr_jax import (
    FusionConfig,
    OTBRConfig,
    TransportConfig,
    fuse,
    neuron_weight_changes,
    neurons_to_prune,
    prune,
    trace,
)
from otbr_jax.contrib import otbr_plus
from otbr_jax.contrib.otbr_plus import OTBRSettings, SweepConfig
from otbr_jax.defenses.grid import FINALISTS, Screening, measure
from otbr_jax.metrics import defense_effectiveness
from otbr_jax.models.registry import build
from otbr_jax.plan import named_key, set_up
from otbr_jax.types import named_leaves, replace_leaves
from otbr_jax.victims import evaluation

GAMMAS, LAMS = (0.0, 0.02, 0.3), (0.25, 0.5, 1.0)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def problem():
    """A small network before and after something moved all of it, as (setup, before, scores, test set)."""
    network, init = build(VICTIM["model"])
    network = dataclasses.replace(network, prepare=lambda images: images.astype(jnp.float32) / 255)
    before, other = (jax.jit(init)(jax.random.key(seed)) for seed in (0, 1))
    after = jax.tree.map(lambda leaf, moved: leaf + 0.1 * moved, before, other)
    graph = trace(network.apply, before, jnp.zeros((2, *network.image_shape)))
    images = jax.random.randint(jax.random.key(2), (40, 8, 8, 1), 0, 256).astype(jnp.uint8)
    logits, bias = network.answer(before, images), "params/classifier/bias"
    before = replace_leaves(before, {bias: named_leaves(before)[bias] - logits.mean(0)})  # not one class for all
    labels = jnp.argmax(network.answer(before, images), axis=-1).astype(jnp.int32)
    assert len(set(labels.tolist())) > 3
    test = evaluation.TestSet(images, 255 - images, labels, jnp.zeros_like(labels))
    setup = set_up(network, graph, layers="convolutions")
    return setup, before, neuron_weight_changes(before, after, setup.layers), test


def program(setup, otbr=OTBRConfig(), images=0):  # noqa: B008
    config = OTBRSettings(otbr=otbr, sweep=SweepConfig(gamma=GAMMAS, lam=LAMS))

    def sweep(variables, scores, test):
        ask = lambda test: partial(evaluation.measure, setup.network, test=test)  # noqa: E731
        few = evaluation.balanced(test, images, key=KEY) if images else None
        screening = None if few is None else Screening(ask(few), images, len(test.labels))
        return measure(
            otbr_plus.grid(config), setup, ask(test),
            victim=variables, scores=scores, key=KEY, screening=screening,
        )  # fmt: skip

    return sweep


def test_it_is_its_settings_one_by_one(problem):
    setup, victim, scores, test = problem
    results = jax.jit(program(setup))(victim, scores, test)
    measured = jax.jit(lambda variables, test: evaluation.measure(setup.network, variables, test))

    @jax.jit
    def fused(pruned, masks, lam):
        return fuse(
            pruned, victim, scores, masks, setup.layers,
            config=FusionConfig(), key=named_key(KEY, "fused"), lam=lam,
        )  # fmt: skip

    for i, gamma in enumerate(GAMMAS):
        pruned, info = prune(victim, scores, setup.layers, count=neurons_to_prune(gamma, setup.neurons))
        np.testing.assert_allclose([field[i] for field in results.metrics["pruned"]], measured(pruned, test), atol=1e-6)
        for j, lam in enumerate(LAMS):
            repaired, details = fused(pruned, info.pruned, lam)
            expected = measured(repaired, test)
            np.testing.assert_allclose([field[i, j] for field in results.metrics["fused"]], expected, atol=1e-6)
        used = [float(plan.marginal_error) for name, plan in details.plans.items() if details.fused[name]]
        # Where Sinkhorn stops depends on the last bits, which another program rounds in its own way.
        np.testing.assert_allclose(results.info["marginal_error"][i], max(used, default=0.0), atol=2e-4)
    assert results.info["converged"].all()
    # Nothing pruned, nothing changed; much pruned, much lost.
    assert (results.metrics["fused"].acc[0] == 1).all()
    assert results.metrics["fused"].acc[-1, -1] < 1


def test_the_best_by_few_images_are_measured_on_all(problem):
    setup, victim, scores, test = problem
    whole = jax.jit(program(setup))(victim, scores, test)
    results = jax.jit(program(setup, images=20))(victim, scores, test)
    few = evaluation.balanced(test, 20, key=KEY)
    alone = jax.jit(program(setup))(victim, scores, few)
    before = evaluation.measure(setup.network, victim, few)
    images, der = np.asarray(results.images), np.asarray(defense_effectiveness(before, alone.metrics["fused"]))
    assert sorted(images.ravel()) == [20] * (images.size - FINALISTS) + [40] * FINALISTS
    assert der[images == 40].min() >= der[images == 20].max()
    for some, all_of_it, mixed in zip(
        alone.metrics["fused"], whole.metrics["fused"], results.metrics["fused"], strict=True
    ):
        np.testing.assert_allclose(mixed, np.where(images == 40, all_of_it, some), atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, results.metrics["pruned"], alone.metrics["pruned"])


def test_few_images_are_of_all_classes_alike():
    labels = jnp.repeat(jnp.arange(4), jnp.array([20, 9, 2, 9]), total_repeat_length=40)
    images = jnp.arange(40, dtype=jnp.uint8)[:, None, None, None]
    test = evaluation.TestSet(images, 255 - images, labels, jnp.arange(40))
    drawn, other = (evaluation.balanced(test, 12, key=jax.random.key(seed)) for seed in (0, 1))
    assert np.bincount(drawn.labels).tolist() == [4, 3, 2, 3]
    places = drawn.goals
    assert len(set(places.tolist())) == 12
    jax.tree.map(np.testing.assert_array_equal, drawn, evaluation.TestSet(*(field[places] for field in test)))
    assert not np.array_equal(drawn.goals, other.goals)


def test_it_compiles_once(problem):
    setup, victim, scores, test = problem
    sweep = jax.jit(chex.assert_max_traces(program(setup), n=1))
    first = sweep(victim, scores, test)
    name = setup.layers[-1].name
    other = replace_leaves(victim, {name: -named_leaves(victim)[name]})
    turned = {layer: score[::-1] for layer, score in scores.items()}
    second = sweep(other, turned, test._replace(goals=test.labels))
    assert not np.array_equal(first.metrics["fused"].acc, second.metrics["fused"].acc)
    assert sweep._cache_size() == 1


def test_transport_that_stops_early_is_reported(problem):
    setup, victim, scores, test = problem
    config = OTBRConfig(fusion=FusionConfig(transport=TransportConfig(epsilon=1e-3, max_iterations=10)))
    results = jax.jit(program(setup, config))(victim, scores, test)
    np.testing.assert_array_equal(
        results.info["converged"], [True, False, False]
    )  # nothing is fused where nothing is pruned
    assert results.info["marginal_error"][0] == 0
    assert (results.info["marginal_error"][1:] > 1e-3).all()
