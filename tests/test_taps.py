"""What layers see, against networks whose layers are computed by hand; and gates, against BatchNorms that are known."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otbr_jax import InputError, choose_layers, trace
from otbr_jax.graph.taps import tap_inputs
from otbr_jax.steps import gates
from otbr_jax.types import Network, named_leaves


class Small(nn.Module):
    @nn.compact
    def __call__(self, images):
        first = nn.relu(nn.Conv(4, (3, 3), name="one")(images))
        second = nn.relu(nn.Conv(6, (3, 3), strides=2, name="two")(first))
        return nn.Dense(3, name="head")(second.mean((1, 2)))


def test_inputs_of_layers_are_what_they_see():
    network, images = Small(), jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
    variables = network.init(jax.random.key(1), images)
    names = ["params/one/kernel", "params/two/kernel", "params/head/kernel"]
    logits, seen = jax.jit(tap_inputs(jax.jit(network.apply), names))(variables, images)
    np.testing.assert_allclose(logits, network.apply(variables, images), atol=1e-6)
    np.testing.assert_array_equal(seen["params/one/kernel"], images)
    first = nn.relu(nn.Conv(4, (3, 3)).apply({"params": variables["params"]["one"]}, images))
    np.testing.assert_allclose(seen["params/two/kernel"], first, atol=1e-6)
    head = variables["params"]["head"]
    np.testing.assert_allclose(seen["params/head/kernel"] @ head["kernel"] + head["bias"], logits, atol=1e-5)


def test_inputs_of_layers_have_gradients():
    network, images = Small(), jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
    variables = network.init(jax.random.key(1), images)
    both = tap_inputs(network.apply, ["params/head/kernel"])
    grads = jax.grad(lambda v: jnp.sum(both(v, images)[1]["params/head/kernel"] ** 2))(variables)["params"]
    assert np.any(np.asarray(grads["one"]["kernel"]))
    assert not np.any(np.asarray(grads["head"]["kernel"]))


def test_a_kernel_that_nobody_uses_is_named():
    network, images = Small(), jnp.zeros((2, 8, 8, 3))
    with pytest.raises(InputError, match=r"layer: .* found 'params/one/bias'"):
        tap_inputs(network.apply, ["params/one/bias"])(network.init(jax.random.key(1), images), images)


def test_scales_are_found_by_what_they_do(moved):
    network, _, variables, graph = moved
    setup_layers = choose_layers(graph, "convolutions")
    leaves = named_leaves(variables)
    positive = {name: jnp.abs(leaf) + 0.5 for name, leaf in leaves.items() if name.endswith("/var")}
    variables = gates.replace_leaves(variables, positive)
    scales = jax.jit(lambda v: gates.gates_of(network, v, setup_layers, key=jax.random.key(0)))(variables)
    assert {name for name, gate in scales.items() if gate} == {name for name in scales if name.endswith("/scale")}
    masks = gates.open_gates(variables, scales)
    jax.tree.map(np.testing.assert_array_equal, gates.apply_masks(variables, scales, masks), variables)
    shut = {name: jnp.zeros_like(mask) for name, mask in masks.items()}
    closed = gates.close_gates(variables, scales, shut, 0.5)
    for name, leaf in named_leaves(closed).items():
        assert not np.any(leaf) if scales.get(name) else np.array_equal(leaf, named_leaves(variables)[name])


def test_a_network_without_normalisation_has_no_gates():
    network, images = Small(), jnp.zeros((2, 8, 8, 3))
    variables = network.init(jax.random.key(1), images)
    layers = choose_layers(trace(network.apply, variables, images), "convolutions")
    without_norm = Network(network.apply, (8, 8, 3), 3)
    assert gates.gates_of(without_norm, variables, layers, key=jax.random.key(0)) == {}
    with pytest.raises(InputError, match="defense: expected a network whose convolutions are followed by normal"):
        gates.check_gates(layers, name="anp")
