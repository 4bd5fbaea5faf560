from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otbr_jax import InputError, Layer, neuron_weight_changes, permute, prune
from otbr_jax.steps.prune import reinitialize, weights_to_zero
from otbr_jax.steps.score import by_neuron, from_neurons
from otbr_jax.types import named_leaves


@pytest.fixture(scope="module")
def scored(moved):
    """(before, after, main convolutions, their scores)."""
    _, before, after, graph = moved
    layers = graph.main_convolutions
    return before, after, layers, neuron_weight_changes(before, after, layers)


def flat(trees, layers):
    return np.concatenate([np.ravel(trees[layer.name]) for layer in layers])


def in_pool(info, before, layers):
    """For every weight, whether its neuron was chosen; flat, as the kernels lie."""
    kernels = {}
    for layer in layers:
        kernel = named_leaves(before)[layer.name]
        rows = np.broadcast_to(info.neurons[layer.name][:, None], (layer.neurons, kernel.size // layer.neurons))
        kernels[layer.name] = from_neurons(jnp.asarray(rows), layer, kernel.shape)
    return flat(kernels, layers)


@pytest.mark.parametrize(
    ("shape", "neuron_axes"), [((3, 3, 4, 5), (3,)), ((6, 7), (1,)), ((5, 2, 3), (1, 2)), ((4, 5, 6, 2), (0, 2))]
)
def test_from_neurons_is_the_inverse_of_by_neuron(shape, neuron_axes):
    neurons = int(np.prod([shape[axis] for axis in neuron_axes]))
    rest = tuple(axis for axis in range(len(shape)) if axis not in neuron_axes)
    layer = Layer("kernel", "dense", neuron_axes, rest[-1:], neurons, shape[rest[-1]])
    kernel = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)
    rows = by_neuron(kernel, layer)
    assert rows.shape == (neurons, kernel.size // neurons)
    np.testing.assert_array_equal(from_neurons(rows, layer, shape), kernel)


@pytest.mark.parametrize("share", [0.1, 0.7])
@pytest.mark.parametrize("count", [1, 7, 20])
def test_the_weights_that_changed_most_of_the_chosen_neurons(scored, count, share):
    before, after, layers, scores = scored
    result, info = reinitialize(before, after, scores, layers, count=count, share=share)
    _, pruned = prune(before, scores, layers, count=count)
    chex.assert_trees_all_equal(info.neurons, pruned.pruned)

    old, new = ({layer.name: np.asarray(named_leaves(tree)[layer.name]) for layer in layers} for tree in scored[:2])
    change = np.abs(flat(new, layers) - flat(old, layers))
    zeroed, pool = flat(info.zeroed, layers), in_pool(info, before, layers)
    assert not np.any(zeroed & ~pool)
    assert change[zeroed].min() >= change[pool & ~zeroed].max()
    assert zeroed.sum() == int(Fraction(str(share)) * int(pool.sum()))  # no ties here
    for name, array in named_leaves(result).items():
        expected = named_leaves(before)[name]
        expected = np.where(info.zeroed[name], 0, expected) if name in info.zeroed else expected
        np.testing.assert_array_equal(array, expected)


def test_all_that_changed_as_much_as_the_last_one_go_with_it():
    layer = Layer("params/kernel", "dense", (1,), (0,), 3, 4)
    change = jnp.array([[2.0, 1.0, 9.0], [2.0, 3.0, 0.0], [0.0, 2.0, 0.0], [5.0, 2.0, 0.0]])
    before = {"params": {"kernel": jnp.ones((4, 3))}}
    after = {"params": {"kernel": 1 + change}}
    scores = {layer.name: jnp.array([3.0, 2.0, 1.0])}
    _, info = reinitialize(before, after, scores, [layer], count=2, share=0.5)  # 4 of 8, but the third to sixth are 2
    np.testing.assert_array_equal(info.neurons[layer.name], [True, True, False])
    np.testing.assert_array_equal(info.zeroed[layer.name], (change >= 2) & jnp.array([True, True, False]))


def test_no_share_changes_nothing_and_all_of_it_is_pruning(scored):
    before, after, layers, scores = scored
    for count, share in ((12, 0.0), (0, 0.7), (0, 1.0)):
        result, info = reinitialize(before, after, scores, layers, count=count, share=share)
        chex.assert_trees_all_equal(result, before)
        assert not flat(info.zeroed, layers).any()
    total = sum(layer.neurons for layer in layers)
    for count in (12, total):
        result, _ = reinitialize(before, after, scores, layers, count=count, share=1.0)
        chex.assert_trees_all_equal(result, prune(before, scores, layers, count=count)[0])


def test_all_of_it_is_pruning_where_weights_did_not_change_too(scored):
    before, _, layers, scores = scored
    result, _ = reinitialize(before, before, scores, layers, count=12, share=1.0)
    chex.assert_trees_all_equal(result, prune(before, scores, layers, count=12)[0])


def test_it_moves_with_the_neurons(moved, scored):
    _, before, after, graph = moved
    layers = scored[2]
    result, _ = reinitialize(*scored[:2], scored[3], layers, count=25, share=0.6)
    for seed, group in enumerate(graph.groups[:3]):
        order = np.random.default_rng(seed).permutation(group.size)
        first, second = permute(before, group, order), permute(after, group, order)
        scores = neuron_weight_changes(first, second, layers)
        permuted, _ = reinitialize(first, second, scores, layers, count=25, share=0.6)
        chex.assert_trees_all_equal(permuted, permute(result, group, order))


def test_one_compilation_serves_every_count_and_share(scored):
    before, after, layers, scores = scored

    @jax.jit
    @chex.assert_max_traces(n=1)
    def traced(count, share):
        return reinitialize(before, after, scores, layers, count=count, share=share)

    chex.clear_trace_counter()
    for count, share in ((0, 0.5), (3, 0.7), (25, 0.0), (25, 1.0), (40, 0.33)):
        result = traced(count, share)
        chex.assert_trees_all_equal(result, reinitialize(before, after, scores, layers, count=count, share=share))


def test_the_number_of_weights_is_exact():
    generator = np.random.default_rng(0)
    pools = np.concatenate([generator.integers(0, 20_000_001, 2000), np.arange(50), [9_999, 10_000, 20_000_000]])
    counts = jax.jit(weights_to_zero)
    for parts in [0, 1, 2_900, 3_333, 5_800, 7_000, 9_999, 10_000, *generator.integers(0, 10_001, 20)]:
        share = int(parts) / 10_000
        expected = [int(Fraction(int(parts), 10_000) * int(pool)) for pool in pools]
        np.testing.assert_array_equal(weights_to_zero(share, jnp.asarray(pools, jnp.int32)), expected)
        np.testing.assert_array_equal(counts(share, jnp.asarray(pools, jnp.int32)), expected)


@pytest.mark.parametrize("wrap", [jax.jit, lambda function: function], ids=["jit", "no jit"])
def test_whole_neurons_keep_nothing(scored, wrap):
    before, after, layers, scores = scored
    inner = [layer for layer in layers if layer.name == "params/layer1.0/conv1/kernel"]
    (name,) = own = {layer.name: scores[layer.name] for layer in inner}

    def without(count):
        return reinitialize(before, after, own, inner, count=count, share=0.1, scheme="neurons")

    changed, info = wrap(without)(1)
    assert info.neurons[name].tolist() == (own[name] == own[name].max()).tolist()
    np.testing.assert_array_equal(info.zeroed[name].all(axis=(0, 1, 2)), info.neurons[name])
    lost, kept = named_leaves(changed), named_leaves(before)
    touched = [name, "params/layer1.0/bn2/scale", "params/layer1.0/bn2/bias"]
    for leaf in touched:
        assert not lost[leaf][..., info.neurons[name]].any()
        np.testing.assert_array_equal(lost[leaf][..., ~info.neurons[name]], kept[leaf][..., ~info.neurons[name]])
    # Everything else stays, the statistics too.
    chex.assert_trees_all_equal(*({n: v for n, v in tree.items() if n not in touched} for tree in (lost, kept)))
    chex.assert_trees_all_equal(wrap(without)(0)[0], before)


def test_a_scheme_that_is_none(scored):
    before, after, layers, scores = scored
    with pytest.raises(InputError, match=r"scheme: expected one of \['weights', 'neurons'\], found 'filters'"):
        reinitialize(before, after, scores, layers, count=1, share=1.0, scheme="filters")
