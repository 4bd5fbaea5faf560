"""Eight simulated CPU devices, so that every test of sharding is a real one."""

import os

os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        # Most of a tiny network's time is compilation; this halves it.
        "--xla_backend_optimization_level=0",
    )
)

import jax
import jax.numpy as jnp
import pytest

from otbr_jax import trace
from otbr_jax.models import registry
from otbr_jax.models.registry import ModelConfig


@pytest.fixture(scope="session")
def tiny():
    """A one-channel PreAct-ResNet of width 4 on 8 x 8 images: (network, variables)."""
    config = ModelConfig(name="preact_resnet10", width=4, image_shape=(8, 8, 1), num_classes=10)
    network, init = registry.build(config)
    return network, jax.jit(init)(jax.random.key(0))


@pytest.fixture(scope="session")
def moved(tiny):
    """(network, variables, the same with every array moved at random, neuron graph)."""
    network, variables = tiny
    leaves, structure = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    after = [x + 0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    graph = trace(network.apply, variables, jnp.zeros((1, 8, 8, 1)))
    return network, variables, jax.tree.unflatten(structure, after), graph
