"""Five tiny runs: their values are those that were recorded, and the same bits in memory and on disk."""

import dataclasses
import functools
import json
from functools import partial

import golden_runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otbr_jax import Batch, otbr, otbr_plus
from otbr_jax import plan as plans
from otbr_jax.data import sources
from otbr_jax.data.clean import clean_augmentation, load_clean
from otbr_jax.defenses.registry import defense
from otbr_jax.runs.networks import open_network

pytestmark = pytest.mark.usefixtures("usual_compiler")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """What each run computed on disk, by its name; those of one victim share a working directory."""
    folder = tmp_path_factory.mktemp("runs")
    return functools.cache(lambda name: golden_runs.run(name, folder / golden_runs.victim(name)))


# The others prove the same of more steps, which take longer to compile.
FAST = ("otbr", "own_network")
RUNS = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in golden_runs.RUNS]


@pytest.mark.parametrize("name", RUNS)
def test_no_value_has_moved(name, finished):
    """Array by array; what arrays are called is free."""
    golden = json.loads((golden_runs.FOLDER / f"{name}.json").read_text())
    if golden["platform"] != golden_runs.here():
        pytest.skip("recorded on another processor or with other versions")
    found = golden_runs.all_digests(finished(name))
    moved = {
        f"{stage}/{array}"
        for stage, arrays in golden["stages"].items()
        for array, digest in arrays.items()
        if digest not in found[stage].values()
    }
    assert not moved


def opened(config, result):
    """The network of a run, its graph, its suspicious variables, and the clean images, in memory."""
    subject = open_network(config.victim.model)
    network = dataclasses.replace(subject.network, prepare=partial(sources.preprocess, config=config.victim.data))
    variables = jax.tree.map(jnp.asarray, result.stages["victim"].value["variables"])
    clean = None
    if defense(config.defense).data != "none":
        shape, classes = network.image_shape, network.num_classes
        images = load_clean(
            config.clean, result.dataset, image_shape=shape, num_classes=classes, seed=config.victim.seed
        )
        clean = Batch(*map(jnp.asarray, images.images))
    return network, subject.graph, variables, clean


# `test_ft` shows it of a step that learns epoch by epoch on clean images.
@pytest.mark.parametrize("name", [pytest.param("otbr", marks=pytest.mark.slow), *RUNS[1:]])
def test_memory_equals_disk(name, finished):
    """`plan.run` and `Run.plan` compute one description twice: every step has the same bits."""
    config, result = golden_runs.RUNS[name], finished(name)
    network, graph, variables, clean = opened(config, result)
    varied = {} if clean is None else {"augment": clean_augmentation(config.clean)}
    setup = plans.set_up(network, graph, layers=defense(config.defense).layers(config.method), **varied)
    given = {"victim": variables, **defense(config.defense).given(config.method, clean, config.victim.seed)}
    found = plans.run(defense(config.defense).plan(config.method), setup, given, key=jax.random.key(config.victim.seed))
    assert [*found] == [step.name for step in defense(config.defense).plan(config.method)]
    for step, value in found.items():
        jax.tree.map(np.testing.assert_array_equal, value, result.stages[step].value)


@pytest.mark.parametrize("name", ["own_network", pytest.param("unchanged", marks=pytest.mark.slow)])
def test_the_public_functions_run_the_plans(name, finished):
    config, result = golden_runs.RUNS[name], finished(name)
    network, graph, variables, _ = opened(config, result)
    if name == "unchanged":
        repaired, info = otbr_plus(network, variables, graph, key=jax.random.key(0), config=config)
        assert not bool(info.findings.detected.flagged)
    else:
        repaired, _ = otbr(network, variables, graph, key=jax.random.key(0), config=config.method.otbr)
    jax.tree.map(np.testing.assert_array_equal, repaired, result.variables)
