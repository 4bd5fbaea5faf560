import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otbr_jax import InputError, neuron_weight_changes, neurons_to_prune, permute, prune, ranks
from otbr_jax.steps.score import check_scores
from otbr_jax.types import named_leaves


def test_nwc_is_the_l1_norm_of_a_neurons_change(moved):
    _, before, after, graph = moved
    layer = graph.main_convolutions[2]
    scores = neuron_weight_changes(before, after, graph.main_convolutions)
    old, new = (np.asarray(named_leaves(tree)[layer.name]) for tree in (before, after))
    expected = [np.abs(new[..., i] - old[..., i]).sum() for i in range(layer.neurons)]
    np.testing.assert_allclose(scores[layer.name], expected, rtol=1e-5)


def test_nwc_moves_with_the_neurons(moved):
    _, before, after, graph = moved
    group = graph.groups[1]
    order = np.random.default_rng(1).permutation(group.size)
    scores = neuron_weight_changes(before, after, graph.main_convolutions)
    permuted = neuron_weight_changes(
        permute(before, group, order), permute(after, group, order), graph.main_convolutions
    )
    for layer in graph.main_convolutions:
        owned = any(axis.name == layer.name and layer.neuron_axes == (axis.axis,) for axis in group.axes)
        expected = scores[layer.name][order] if owned else scores[layer.name]
        np.testing.assert_allclose(permuted[layer.name], expected, rtol=1e-5)


def test_ranks_are_one_global_list_and_ties_keep_execution_order():
    places = ranks({"b": jnp.array([1.0, 3.0]), "a": jnp.array([3.0, 0.0, 5.0])})
    assert places["b"].tolist() == [3, 1]
    assert places["a"].tolist() == [2, 4, 0]


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("jit", [False, True])
def test_exactly_the_highest_scores_are_zeroed(moved, gamma, jit):
    _, before, after, graph = moved
    layers = graph.main_convolutions
    scores = neuron_weight_changes(before, after, layers)
    count = neurons_to_prune(gamma, sum(layer.neurons for layer in layers))

    def function(count):
        return prune(before, scores, layers, count=count)

    pruned, info = (jax.jit(function) if jit else function)(count)
    masks = np.concatenate([np.asarray(info.pruned[layer.name]) for layer in layers])
    flat = np.concatenate([np.asarray(scores[layer.name]) for layer in layers])
    assert masks.sum() == count
    if 0 < count < len(flat):
        assert flat[masks].min() >= flat[~masks].max()
    kernels = {layer.name for layer in layers}
    for name, array in named_leaves(pruned).items():
        original = named_leaves(before)[name]
        if name not in kernels:
            np.testing.assert_array_equal(array, original)
            continue
        mask = np.asarray(info.pruned[name])
        np.testing.assert_array_equal(array[..., mask], 0)
        np.testing.assert_array_equal(array[..., ~mask], original[..., ~mask])


def test_the_share_is_rounded_down_as_in_the_reference():
    assert [neurons_to_prune(gamma, 976) for gamma in (0.01, 0.05, 0.1)] == [9, 48, 97]


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
def test_gamma_outside_the_unit_interval(gamma):
    with pytest.raises(InputError, match=r"gamma: expected a fraction of neurons in \[0, 1\], found"):
        neurons_to_prune(gamma, 10)


def test_a_layer_without_any_change_is_named():
    with pytest.raises(InputError, match="scores of b: expected a neuron whose weights changed, found all 2 at zero"):
        check_scores({"a": jnp.ones(3), "b": jnp.zeros(2)})
    with pytest.raises(InputError, match="scores of a: expected finite"):
        check_scores({"a": jnp.array([1.0, jnp.nan])})
