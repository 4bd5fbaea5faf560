"""Fixtures that tests of several files share."""

import shutil

import environment  # noqa: F401

# isort: split
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax._src import compiler

from otbr_jax import trace
from otbr_jax.models import registry
from otbr_jax.models.layers import BatchNorm
from otbr_jax.models.preact_resnet import PreActResNet
from otbr_jax.models.registry import ModelConfig, network_from_flax


class Small(nn.Module):
    """Two convolutions with BatchNorm, and a classifier: what a step is tested on that asks for no more."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train):
        for index, features in enumerate((3, 4), start=1):
            x = nn.Conv(features, (3, 3), 2, use_bias=False, name=f"conv{index}")(x)
            x = nn.relu(BatchNorm(axis_name=self.axis_name, name=f"bn{index}")(x, train=train))
        return nn.Dense(10, name="linear")(x.mean((1, 2)))


def disturbed(variables, key):
    """Variables with every array moved at random."""
    leaves, structure = jax.tree.flatten(variables)
    keys = jax.random.split(key, len(leaves))
    after = [x + 0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, after)


def small_network(axis_name=None):
    """`Small` on 8 x 8 images of one channel."""
    return network_from_flax(Small(axis_name), image_shape=(8, 8, 1), num_classes=10)


@pytest.fixture
def usual_compiler(monkeypatch):
    """For two programs that must round alike: the passes that `environment.QUICK` leaves out are not left out."""
    options = compiler.get_compile_options

    def usual(*arguments, **more):
        own = dict(more.pop("env_options_overrides", None) or {})
        return options(*arguments, **more, env_options_overrides={"xla_cpu_use_fusion_emitters": True} | own)

    monkeypatch.setattr(compiler, "get_compile_options", usual)
    jax.clear_caches()


@pytest.fixture(scope="session")
def small():
    """(network, variables, neuron graph), see `Small`."""
    network = small_network()

    @jax.jit
    def made(key):
        return disturbed(Small().init(key, jnp.zeros((1, 8, 8, 1)), train=True), key)

    variables = made(jax.random.key(0))
    return network, variables, trace(network.apply, variables, jnp.zeros((1, 8, 8, 1)))


@pytest.fixture(scope="session")
def synchronised():
    """`Small`, whose BatchNorm averages over a mapped axis named `devices`."""
    return small_network(axis_name="devices")


@pytest.fixture(scope="session")
def tiny():
    """A one-channel network of the registry, PreAct-ResNet10 of width 4 on 8 x 8 images: (network, variables)."""
    config = ModelConfig(name="preact_resnet10", width=4, image_shape=(8, 8, 1), num_classes=10)
    network, init = registry.build(config)
    return network, jax.jit(init)(jax.random.key(0))


@pytest.fixture(scope="session")
def moved():
    """A PreAct-ResNet of two blocks: (network, variables, the same with every array moved at random, neuron graph)."""
    module = PreActResNet(num_classes=10, depth=(1, 1), width=4)
    network = network_from_flax(module, image_shape=(8, 8, 1), num_classes=10)
    variables = jax.jit(lambda key: module.init(key, jnp.zeros((1, 8, 8, 1)), train=True))(jax.random.key(0))
    after = jax.jit(disturbed)(variables, jax.random.key(9))
    return network, variables, after, trace(network.apply, variables, jnp.zeros((1, 8, 8, 1)))


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
