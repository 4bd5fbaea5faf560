import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otbr_jax import InputError, NeuronGraph, OTBRConfig, UnlearningConfig, otbr

CONFIG = OTBRConfig(unlearning=UnlearningConfig(steps=2, batch_size=8, learning_rate=1e-3), gamma=0.2)


def test_the_whole_defence_jits_and_runs_in_a_users_pmap(small, synchronised):
    network, variables, graph = small
    key = jax.random.key(8)
    repaired, info = jax.jit(lambda v: otbr(network, v, graph, key=key, config=CONFIG))(variables)
    mapped, mapped_info = jax.pmap(
        lambda _, v: otbr(synchronised, v, graph, key=key, config=CONFIG, axis_name="devices"),
        axis_name="devices",
        in_axes=(0, None),
    )(jnp.arange(4), variables)
    layers = graph.main_convolutions
    assert [*info.scores] == [layer.name for layer in layers]
    for layer in layers:
        np.testing.assert_allclose(mapped_info.scores[layer.name][0], info.scores[layer.name], rtol=1e-3)
        np.testing.assert_array_equal(mapped_info.pruning.pruned[layer.name][3], info.pruning.pruned[layer.name])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[3], b, rtol=1e-3, atol=1e-3), mapped, repaired)
    assert bool(jnp.all(jnp.array([plan.converged for plan in info.fusion.plans.values()])))
    assert any(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (repaired, variables)), strict=True))


def test_a_graph_without_layers_to_repair(small):
    network, variables, _ = small
    with pytest.raises(InputError, match="layers: expected hidden layers on the network's main path, found none"):
        otbr(network, variables, NeuronGraph(()), key=jax.random.key(0), config=CONFIG)


def test_gamma_is_checked_at_once():
    with pytest.raises(InputError, match=r"otbr\.gamma: expected a number in \[0, 1\], found 1.5"):
        OTBRConfig(gamma=1.5)
