import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import disturbed
from test_neurons import traced

from otbr_jax import (
    FusionConfig,
    InputError,
    TransportConfig,
    UnlearningConfig,
    fuse,
    neuron_weight_changes,
    neurons_to_prune,
    permute,
    prune,
    random_unlearning,
)
from otbr_jax.steps.fuse import align, interpolate
from otbr_jax.types import named_leaves, replace_leaves


def run(before, after, layers, *, gamma=0.5, lam=0.5, transport=TransportConfig(), key=None):  # noqa: B008
    count = neurons_to_prune(gamma, sum(layer.neurons for layer in layers)) if isinstance(gamma, float) else gamma
    scores = neuron_weight_changes(before, after, layers)
    pruned, info = prune(before, scores, layers, count=count)
    config = FusionConfig(transport=transport)
    return *fuse(pruned, before, scores, info.pruned, layers, config=config, lam=lam, key=key), info.pruned


@pytest.fixture(scope="module")
def fused(moved):
    """`(before, after, gamma=, lam=) -> (variables, FusionInfo, masks)`, one program for all of them."""
    layers = moved[3].main_convolutions
    jitted = jax.jit(lambda before, after, count, lam: run(before, after, layers, gamma=count, lam=lam))

    def apply(before, after, *, gamma=0.5, lam=0.5):
        count = neurons_to_prune(gamma, sum(layer.neurons for layer in layers))
        return jitted(before, after, jnp.int32(count), jnp.float32(lam))

    return apply


@pytest.mark.parametrize("settings", [{"lam": 0.0}, {"gamma": 0.0}])
def test_nothing_changes_at_lambda_zero_or_without_pruning(moved, fused, settings):
    _, before, after, _ = moved
    jax.tree.map(np.testing.assert_array_equal, fused(before, after, **settings)[0], before)


def test_layers_before_the_first_pruned_neuron_and_all_other_arrays_stay(moved, fused):
    _, before, after, graph = moved
    # Make the last layer change most.
    layers = graph.main_convolutions
    last = layers[-1].name
    after = replace_leaves(after, {last: 50 * named_leaves(after)[last]})
    result, info, pruned = fused(before, after, gamma=0.1)
    assert [bool(info.fused[layer.name]) for layer in layers] == [False] * (len(layers) - 1) + [True]
    assert any(bool(mask.any()) for mask in pruned.values())
    for name, array in named_leaves(result).items():
        same = np.array_equal(array, named_leaves(before)[name])
        assert same == (name != last), name


@pytest.mark.parametrize(
    "settings",
    [
        {"solver": "exact"},
        {"cost": "squared_euclidean"},
        {"target_mass": "uniform"},
        {"source_mass": "nwc"},
        {"target_mass": "random"},
    ],
    ids=lambda settings: "-".join(settings.values()),
)
def test_other_transports(small, settings):
    network, before, graph = small
    after = jax.jit(disturbed)(before, jax.random.key(3))
    layers, key = graph.main_convolutions, jax.random.key(5)
    fuse = jax.jit(lambda a, b: run(a, b, layers, transport=TransportConfig(**settings), key=key)[:2])
    other, info = fuse(before, after)
    usual, _ = jax.jit(lambda a, b: run(a, b, layers)[:2])(before, after)
    images = jax.random.uniform(jax.random.key(1), (4, 8, 8, 1))
    assert all(bool(plan.converged) for plan in info.plans.values())
    assert bool(jnp.all(jnp.isfinite(network.apply(other, images))))
    assert not np.allclose(network.apply(other, images), network.apply(usual, images), rtol=1e-6)


def test_random_masses_need_a_key(moved):
    _, before, after, graph = moved
    with pytest.raises(InputError, match="key: expected a PRNG key for random masses"):
        jax.eval_shape(
            lambda a, b: run(a, b, graph.main_convolutions, transport=TransportConfig(target_mass="random"))[:2],
            before,
            after,
        )


def test_lambda_interpolates_linearly(moved, fused):
    _, before, after, _ = moved
    none, half, whole = (fused(before, after, lam=lam)[0] for lam in (0.0, 0.5, 1.0))
    jax.tree.map(lambda a, b, c: np.testing.assert_allclose(b, (a + c) / 2, atol=1e-6), none, half, whole)


def test_the_first_fused_layer_is_made_of_convex_combinations(moved, fused):
    _, before, after, graph = moved
    layers = graph.main_convolutions
    made, info, pruned = fused(before, after, gamma=1.0, lam=1.0)
    assert all(bool(mask.all()) for mask in pruned.values())
    np.testing.assert_array_equal(named_leaves(made)[layers[0].name], 0)  # convex combinations of zeros
    made, info, pruned = fused(before, after, lam=1.0)
    first = next(layer for layer in layers if bool(info.fused[layer.name]))
    source = np.where(np.asarray(pruned[first.name]), 0, named_leaves(before)[first.name])
    mapped = np.asarray(named_leaves(made)[first.name])
    assert np.all(mapped.max(-1) <= source.max(-1) + 1e-5)
    assert np.all(mapped.min(-1) >= source.min(-1) - 1e-5)


def test_the_order_of_neurons_does_not_matter(moved, fused):
    """Fusing a network whose neurons were permuted gives the same function."""
    network, before, after, graph = moved
    images = jax.random.uniform(jax.random.key(1), (4, 8, 8, 1))
    expected = network.apply(fused(before, after)[0], images)
    for group in graph.groups:
        order = np.random.default_rng(2).permutation(group.size)
        permuted, _, _ = fused(permute(before, group, order), permute(after, group, order))
        np.testing.assert_allclose(network.apply(permuted, images), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["concatenating", "plain", "fused attention", "grouped"])
def test_the_order_of_neurons_does_not_matter_however_they_are_fed(name):
    """The same through concatenation, flattening, heads and groups; grouped and depthwise kernels stay as they are."""
    apply, before, images, graph = traced(name)
    after = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), before)
    layers = graph.hidden_layers
    config = TransportConfig(threshold=1e-5)
    fused = jax.jit(lambda a, b: run(a, b, layers, gamma=0.4, transport=config)[0])
    expected = apply(fused(before, after), images)
    for group in graph.groups:
        order = np.random.default_rng(2).permutation(group.size).tolist()
        logits = apply(fused(permute(before, group, order), permute(after, group, order)), images)
        np.testing.assert_allclose(logits, expected, rtol=1e-2, atol=1e-2)


def test_concatenated_inputs_are_known_block_by_block():
    _, _, _, graph = traced("concatenating")
    layers = graph.main_convolutions
    assert [layer.name for layer in layers] == ["params/a/kernel", "params/b/kernel", "params/c/kernel"]
    assert layers[2].fed_by["params/a/kernel"] == (0, 1, 2, -1, -1, -1, -1)


def test_half_precision_weights(small):
    network, before, graph = small
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), before)
    config = UnlearningConfig(steps=2, batch_size=8)
    layers = graph.main_convolutions

    @jax.jit
    def found(half):
        unlearned, _ = random_unlearning(network, half, key=jax.random.key(0), config=config)
        return run(half, unlearned, layers)[:2], neuron_weight_changes(half, unlearned, layers)

    (fused, info), scores = found(half)
    assert all(score.dtype == jnp.float32 and bool(jnp.any(score > 0)) for score in scores.values())
    assert all(bool(plan.converged) for plan in info.plans.values())
    assert {leaf.dtype for leaf in jax.tree.leaves(fused)} == {jnp.dtype(jnp.bfloat16)}


def test_jit_agrees(moved, fused):
    _, before, after, graph = moved
    plain = run(before, after, graph.main_convolutions)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), fused(before, after)[0], plain)


def test_a_neuron_that_did_not_change_makes_no_nan(moved, fused):
    _, before, after, graph = moved
    layer = graph.main_convolutions[3]
    kernels = (named_leaves(tree)[layer.name] for tree in (before, after))
    old, new = kernels
    after = replace_leaves(after, {layer.name: new.at[..., 1].set(old[..., 1])})
    result, _, _ = fused(before, after)
    assert all(bool(jnp.all(jnp.isfinite(array))) for array in jax.tree.leaves(result))


@pytest.mark.parametrize("lam", [-0.5, 1.5, float("nan")])
def test_lambda_outside_the_unit_interval(lam):
    with pytest.raises(InputError, match=r"fusion.lam: expected a number in \[0, 1\], found"):
        FusionConfig(lam=lam)


def test_a_permuted_copy_is_brought_back(moved):
    _, before, _, graph = moved
    layers = graph.main_convolutions
    scores = {layer.name: jnp.ones(layer.neurons) for layer in layers}
    config = FusionConfig(lam=1.0, transport=TransportConfig(solver="exact"))
    names = {layer.name for layer in layers}
    group = next(  # inside a block: no shortcut and no classifier reads its neurons
        group for group in graph.groups if {axis.name for axis in group.axes if axis.name.endswith("kernel")} <= names
    )
    order = np.random.default_rng(0).permutation(group.size).tolist()
    part = {layer.name: jnp.full(layer.neurons, True) for layer in layers}
    permuted = permute(before, group, order)
    alignment = align(permuted, before, scores, part, layers, config=config)
    result = interpolate(before, alignment, lam=1.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), result, before)
