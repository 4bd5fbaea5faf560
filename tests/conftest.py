"""Eight simulated CPU devices, so that every test of sharding is a real one; programs are compiled once for all."""

import os
import shutil
import tempfile

os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        # Most of a tiny network's time is compilation; this halves it.
        "--xla_backend_optimization_level=0",
    )
)
os.environ.setdefault("TQDM_DISABLE", "1")  # bars would keep programs from being kept

import jax
import jax.numpy as jnp
import pytest

from otbr_jax import trace
from otbr_jax.models.preact_resnet import PreActResNet
from otbr_jax.models.registry import network_from_flax

CACHE = "JAX_COMPILATION_CACHE_DIR"


def pytest_configure(config):
    """One folder of compiled programs for this process, its workers, and the programs that tests launch."""
    if CACHE not in os.environ:
        config.made = os.environ[CACHE] = tempfile.mkdtemp(prefix="otbr_jax_tests_")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    jax.config.update("jax_compilation_cache_dir", os.environ[CACHE])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_unconfigure(config):
    """Removes the folder, in the process that made it."""
    if hasattr(config, "made"):
        shutil.rmtree(os.environ.pop(CACHE), ignore_errors=True)


def tiny_network(axis_name=None):
    """A one-channel PreAct-ResNet of two blocks and width 4 on 8 x 8 images: (network, init)."""
    module = PreActResNet(num_classes=10, depth=(1, 1), width=4, axis_name=axis_name)
    network = network_from_flax(module, image_shape=(8, 8, 1), num_classes=10)
    return network, lambda key: module.init(key, jnp.zeros((1, 8, 8, 1)), train=True)


@pytest.fixture(scope="session")
def tiny():
    """(network, variables), see `tiny_network`."""
    network, init = tiny_network()
    return network, jax.jit(init)(jax.random.key(0))


@pytest.fixture(scope="session")
def synchronised():
    """The same network, whose BatchNorm averages over a mapped axis named `devices`."""
    return tiny_network(axis_name="devices")[0]


@pytest.fixture(scope="session")
def moved(tiny):
    """(network, variables, the same with every array moved at random, neuron graph)."""
    network, variables = tiny

    @jax.jit
    def disturbed(variables):
        leaves, structure = jax.tree.flatten(variables)
        keys = jax.random.split(jax.random.key(9), len(leaves))
        after = [x + 0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(structure, after)

    return network, variables, disturbed(variables), trace(network.apply, variables, jnp.zeros((1, 8, 8, 1)))
