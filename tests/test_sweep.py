"""The grid gamma x lambda as one program: the same as its settings one by one, compiled once."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from otbr_jax.experiments import otbr_grid

from otbr_jax import FusionConfig, OTBRConfig, TransportConfig, fuse, neuron_weight_changes, prune
from otbr_jax.runs.devices import local_mesh
from otbr_jax.types import named_leaves, replace_leaves
from otbr_jax.victims import evaluation
from otbr_jax.victims.evaluation import evaluate_predictions, predict_both

COUNTS, LAMS = (0, 2, 20), (0.25, 0.5, 1.0)
MESH = local_mesh(jax.local_devices()[:1])


def prepare(images):
    return images.astype(jnp.float32) / 255


@pytest.fixture(scope="module")
def problem(moved):
    network, before, after, graph = moved
    images = jax.random.randint(jax.random.key(2), (40, 8, 8, 1), 0, 256).astype(jnp.uint8)
    labels = jnp.argmax(network.apply(before, prepare(images)), axis=-1).astype(jnp.int32)
    test = evaluation.TestSet(images, 255 - images, labels, jnp.zeros_like(labels))
    layers = graph.main_convolutions
    return network, before, neuron_weight_changes(before, after, layers), test, layers


def program(network, layers, config=OTBRConfig()):  # noqa: B008
    def sweep(variables, scores, test):
        return otbr_grid.sweep(
            network, variables, variables, scores, test, layers, counts=jnp.array(COUNTS), lams=jnp.array(LAMS),
            config=config, key=jax.random.key(0), prepare=prepare, mesh=MESH,
        )  # fmt: skip

    return sweep


def test_it_is_its_settings_one_by_one(problem):
    network, variables, scores, test, layers = problem
    found = jax.jit(program(network, layers))(variables, scores, test)

    @jax.jit
    def measured(variables, test):
        predicted = predict_both(network, variables, test, prepare=prepare, mesh=MESH)
        return evaluate_predictions(predicted.clean, predicted.triggered, test.labels, target=test.goals)

    @jax.jit
    def fused(pruned, masks):
        return [fuse(pruned, variables, scores, masks, layers, config=FusionConfig(lam)) for lam in LAMS]

    for i, count in enumerate(COUNTS):
        pruned, info = prune(variables, scores, layers, count=count)
        np.testing.assert_allclose([field[i] for field in found.pruned], measured(pruned, test), atol=1e-6)
        settings = fused(pruned, info.pruned)
        for j, (variables_of_setting, _) in enumerate(settings):
            expected = measured(variables_of_setting, test)
            np.testing.assert_allclose([field[i, j] for field in found.repaired], expected, atol=1e-6)
        details = settings[0][1]
        used = [float(plan.marginal_error) for name, plan in details.plans.items() if details.fused[name]]
        # Where Sinkhorn stops depends on the last bits, which another program rounds in its own way.
        np.testing.assert_allclose(found.marginal_error[i], max(used, default=0.0), atol=2e-4)
    assert found.converged.all()
    # Nothing pruned, nothing changed; much pruned, much lost.
    assert (found.repaired.acc[0] == 1).all()
    assert found.repaired.acc[-1, -1] < 1


def test_it_compiles_once(problem):
    network, variables, scores, test, layers = problem
    sweep = jax.jit(chex.assert_max_traces(program(network, layers), n=1))
    first = sweep(variables, scores, test)
    name = layers[-1].name
    other = replace_leaves(variables, {name: -named_leaves(variables)[name]})
    second = sweep(other, {key: score[::-1] for key, score in scores.items()}, test._replace(goals=test.labels))
    assert not np.array_equal(first.repaired.acc, second.repaired.acc)
    assert sweep._cache_size() == 1


def test_transport_that_stops_early_is_reported(problem):
    network, variables, scores, test, layers = problem
    config = OTBRConfig(fusion=FusionConfig(transport=TransportConfig(epsilon=1e-3, max_iterations=10)))
    found = jax.jit(program(network, layers, config))(variables, scores, test)
    np.testing.assert_array_equal(found.converged, [True, False, False])  # nothing is fused where nothing is pruned
    assert found.marginal_error[0] == 0
    assert (found.marginal_error[1:] > 1e-3).all()
