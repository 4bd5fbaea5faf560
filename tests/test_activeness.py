import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from otbr_jax import Batch, UnlearningConfig, permute
from otbr_jax.steps.activeness import activeness, gradient_norms
from otbr_jax.types import named_leaves, split

STEPS = 3
CONFIG = UnlearningConfig(steps=STEPS, batch_size=8, learning_rate=1e-3)


def close(a, b, rtol=1e-3):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), a, b)


@pytest.fixture(scope="module")
def batches():
    keys = jax.random.split(jax.random.key(6))
    images = jax.random.uniform(keys[0], (STEPS, 8, 8, 8, 1))
    return Batch(images, jax.random.randint(keys[1], (STEPS, 8), 0, 10))


@pytest.fixture(scope="module")
def gradients(moved, batches):
    """`variables -> gradients` of the cross-entropy on the first batch."""
    network, batch = moved[0], jax.tree.map(lambda x: x[0], batches)

    def loss(params, state):
        logits, _ = network.train({"params": params, **state}, batch.images)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels))

    return jax.jit(lambda variables: jax.grad(loss)(*split(variables)))


@pytest.fixture(scope="module")
def measured(moved, batches):
    """`variables -> (Activeness, UnlearningInfo)` of all layers, jitted."""
    network, _, _, graph = moved
    return jax.jit(lambda v: activeness(network, v, batches, graph.layers, config=CONFIG))


def test_norms_are_those_of_each_neurons_gradient_in_every_layer(moved, gradients):
    _, _, after, graph = moved
    grads = gradients(after)
    norms = gradient_norms(grads, graph.layers)
    assert {"conv", "dense"} == {layer.kind for layer in graph.layers}
    assert any(layer.kind == "conv" and not layer.main_path for layer in graph.layers)  # a shortcut
    assert list(norms) == [layer.name for layer in graph.layers]
    for layer in graph.layers:
        kernel = np.asarray(named_leaves({"params": grads})[layer.name], np.float64)
        expected = [np.linalg.norm(kernel[..., neuron]) for neuron in range(layer.neurons)]
        np.testing.assert_allclose(norms[layer.name], expected, rtol=1e-5)
        assert norms[layer.name].max() > 0


def test_norms_move_with_the_neurons(moved, gradients):
    _, _, after, graph = moved
    norms = gradient_norms(gradients(after), graph.layers)
    group = graph.groups[1]
    order = np.random.default_rng(1).permutation(group.size)
    permuted = gradient_norms(gradients(permute(after, group, order)), graph.layers)
    moving = 0
    for layer in graph.layers:
        owned = any(axis.name == layer.name and layer.neuron_axes == (axis.axis,) for axis in group.axes)
        expected = norms[layer.name][order] if owned else norms[layer.name]
        np.testing.assert_allclose(permuted[layer.name], expected, rtol=1e-3, atol=1e-5 * expected.max())
        moving += owned
    assert moving


@pytest.mark.parametrize("scale", [1e-30, 0.0])
def test_small_and_missing_gradients(moved, gradients, scale):
    _, _, after, graph = moved
    grads = gradients(after)
    norms = gradient_norms(jax.tree.map(lambda g: g * scale, grads), graph.layers)
    for name, expected in gradient_norms(grads, graph.layers).items():
        np.testing.assert_allclose(np.asarray(norms[name], np.float64), np.asarray(expected) * scale, rtol=1e-4)


def test_mean_and_variance_are_those_of_the_batches(moved, gradients, measured):
    _, _, after, graph = moved
    norms, info = measured(after)
    for layer in graph.layers:
        observed = np.asarray(info.observed[layer.name])
        assert observed.shape == (STEPS, layer.neurons)
        np.testing.assert_allclose(norms.mean[layer.name], observed.mean(0), rtol=1e-5)
        np.testing.assert_allclose(norms.variance[layer.name], observed.var(0), rtol=1e-3, atol=1e-10)
    # The first batch's norms are those before any step.
    close({name: norms[0] for name, norms in info.observed.items()}, gradient_norms(gradients(after), graph.layers))


def test_it_maps_over_networks(moved, batches, measured):
    network, before, after, graph = moved
    stack = jax.tree.map(lambda *x: jnp.stack(x), before, after)
    mapped = jax.jit(jax.vmap(lambda v: activeness(network, v, batches, graph.layers, config=CONFIG)))(stack)
    for index, variables in enumerate((before, after)):
        close(jax.tree.map(lambda x, i=index: x[i], mapped), measured(variables))
