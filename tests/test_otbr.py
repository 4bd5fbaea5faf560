import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otbr_jax import InputError, OTBRConfig, UnlearningConfig, otbr, trace
from otbr_jax.models import registry
from otbr_jax.models.registry import ModelConfig

CONFIG = OTBRConfig(unlearning=UnlearningConfig(steps=3, batch_size=16, learning_rate=1e-3), gamma=0.2)


def test_the_whole_defence_jits_and_runs_in_a_users_pmap(tiny):
    network, variables = tiny
    layers = trace(network.apply, variables, jnp.zeros((1, 8, 8, 1))).main_convolutions
    synchronised, _ = registry.build(
        ModelConfig(name="preact_resnet10", width=4, image_shape=(8, 8, 1)), axis_name="devices"
    )
    key = jax.random.key(8)
    repaired, info = jax.jit(lambda v: otbr(network, v, layers, key=key, config=CONFIG))(variables)
    mapped, mapped_info = jax.pmap(
        lambda _, v: otbr(synchronised, v, layers, key=key, config=CONFIG, axis_name="devices"),
        axis_name="devices",
        in_axes=(0, None),
    )(jnp.arange(8), variables)
    for layer in layers:
        np.testing.assert_allclose(mapped_info.scores[layer.name][0], info.scores[layer.name], rtol=1e-3)
        np.testing.assert_array_equal(mapped_info.pruning.pruned[layer.name][5], info.pruning.pruned[layer.name])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[3], b, rtol=1e-3, atol=1e-3), mapped, repaired)
    assert bool(jnp.all(jnp.array([plan.converged for plan in info.fusion.plans.values()])))
    assert any(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (repaired, variables)), strict=True))


def test_no_layers(tiny):
    network, variables = tiny
    with pytest.raises(InputError, match="layers: expected at least one convolution"):
        otbr(network, variables, (), key=jax.random.key(0), config=CONFIG)


def test_gamma_is_checked_at_once():
    with pytest.raises(InputError, match="gamma: expected a fraction"):
        OTBRConfig(gamma=1.5)
