import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otbr_jax import Batch, InputError, NeuronGraph, neuron_weight_changes, neurons_to_prune
from otbr_jax.defenses.tsbd import TSBDConfig, tsbd
from otbr_jax.plan import named_key
from otbr_jax.steps.finetune import FinetuningConfig, finetune
from otbr_jax.steps.prune import reinitialize
from otbr_jax.steps.unlearn import CleanUnlearningConfig, clean_unlearning

CONFIG = TSBDConfig(
    unlearning=CleanUnlearningConfig(max_epochs=3, batch_size=16, learning_rate=1e-3, stop_accuracy=0.01),
    n=0.2,
    finetuning=FinetuningConfig(epochs=2, batch_size=8),
)


def brightened(images, key):
    return images + 0.1 * jax.random.uniform(key, (len(images), 1, 1, 1))


@pytest.fixture(scope="module")
def clean(small):
    """Random images with the network's training-mode predictions, so that there is something to unlearn."""
    network, variables, _ = small
    images = jax.random.uniform(jax.random.key(1), (32, 8, 8, 1))
    logits, _ = jax.jit(network.train)(variables, images)
    return Batch(images, jnp.argmax(logits, axis=-1).astype(jnp.int32))


@pytest.fixture(scope="module")
def defence(small, clean):
    """`(variables, key) -> (repaired, TSBDInfo)`, jitted."""
    network, _, graph = small
    return jax.jit(lambda v, key: tsbd(network, v, clean, graph, key=key, config=CONFIG, augment=brightened))


def test_the_whole_defence_jits_and_is_a_function_of_its_key(small, defence):
    _, variables, graph = small
    repaired, info = defence(variables, jax.random.key(3))
    chex.assert_trees_all_equal_shapes_and_dtypes(repaired, variables)
    chex.assert_tree_all_finite(repaired)
    assert {leaf.dtype for leaf in jax.tree.leaves(repaired)} == {jnp.dtype("float32")}
    assert any(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (repaired, variables)), strict=True))
    assert int(info.unlearning.epochs) == 3
    assert {name: values.shape for name, values in info.finetuning.items()} == {"loss": (2,), "accuracy": (2,)}
    layers = graph.main_convolutions
    chosen = sum(int(info.reinit.neurons[layer.name].sum()) for layer in layers)
    assert chosen == neurons_to_prune(0.2, sum(layer.neurons for layer in layers))

    chex.assert_trees_all_equal(defence(variables, jax.random.key(3)), (repaired, info))
    other, _ = defence(variables, jax.random.key(4))
    assert not np.array_equal(*(tree["params"]["conv1"]["kernel"] for tree in (repaired, other)))


def test_it_is_its_steps_one_after_the_other(small, clean, defence):
    network, variables, graph = small
    layers = graph.main_convolutions
    key = jax.random.key(3)
    count = neurons_to_prune(CONFIG.n, sum(layer.neurons for layer in layers))

    @jax.jit
    def by_hand(variables):
        unlearned, unlearning = clean_unlearning(
            network, variables, clean, key=named_key(key, "unlearned"), config=CONFIG.unlearning, augment=brightened
        )
        scores = neuron_weight_changes(variables, unlearned, layers)
        start, reinit = reinitialize(variables, unlearned, scores, layers, count=count, share=CONFIG.m)
        repaired, info = finetune(
            network, start, clean, key=named_key(key, "finetuned"), config=CONFIG.finetuning, augment=brightened
        )
        history = {name: jnp.mean(values, axis=1) for name, values in info._asdict().items()}
        return repaired, (unlearning, scores, reinit, history)

    found, info = defence(variables, key)
    expected = by_hand(variables)
    chex.assert_trees_all_equal(info.reinit, expected[1][2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), (found, tuple(info)), expected)


def test_a_graph_without_layers_to_repair(small, clean):
    network, variables, _ = small
    with pytest.raises(InputError, match="layers: expected hidden layers on the network's main path, found none"):
        tsbd(network, variables, clean, NeuronGraph(()), key=jax.random.key(0), config=CONFIG)


@pytest.mark.parametrize(("settings", "field"), [({"n": -0.1}, "n"), ({"m": 1.5}, "m"), ({"m": float("nan")}, "m")])
def test_bad_settings(settings, field):
    with pytest.raises(InputError, match=rf"tsbd\.{field}: expected a number in \[0, 1\], found"):
        TSBDConfig(**settings)


def test_without_epochs_there_is_no_fine_tuning(small, clean):
    network, variables, graph = small
    config = dataclasses.replace(CONFIG, finetuning=FinetuningConfig(epochs=0, batch_size=8))
    repaired = jax.eval_shape(lambda v: tsbd(network, v, clean, graph, key=jax.random.key(0), config=config), variables)
    assert repaired[1].finetuning["loss"].shape == (0,)
