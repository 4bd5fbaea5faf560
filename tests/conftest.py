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
from otbr_jax.models import registry
from otbr_jax.models.registry import ModelConfig

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


@pytest.fixture(scope="session")
def otbr_run(tmp_path_factory):
    """(working directory, result, summary) of a whole run of OTBR; see `tiny_runs.OTBR`. To be copied, not changed."""
    return whole_run(tmp_path_factory.mktemp("otbr") / "w", "OTBR")


@pytest.fixture(scope="session")
def tsbd_run(otbr_run, tmp_path_factory):
    """The same of TSBD, see `tiny_runs.TSBD`, on the same victim."""
    workdir = tmp_path_factory.mktemp("tsbd") / "w"
    shutil.copytree(otbr_run[0], workdir)
    return whole_run(workdir, "TSBD")


def whole_run(workdir, name):
    """The run of that name of `tiny_runs`."""
    import tiny_runs

    from otbr_jax.studies.results import summarize

    result = tiny_runs.run(workdir, getattr(tiny_runs, name))
    return workdir, result, summarize(result)
