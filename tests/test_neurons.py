import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otbr_jax import InputError, permute, trace
from otbr_jax.models import registry
from otbr_jax.models.registry import ModelConfig
from otbr_jax.neurons import Axis, Group


def shuffled(variables, key):
    """Random values everywhere, so that a wrongly permuted BatchNorm vector cannot hide behind zeros and ones."""

    def draw(key, x):
        if len(x.shape) > 1:
            return jax.random.normal(key, x.shape) / np.prod(x.shape[:-1]) ** 0.5
        return jax.random.uniform(key, x.shape, minval=0.2, maxval=1.0)

    leaves, structure = jax.tree.flatten(variables)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [draw(k, x) for k, x in zip(keys, leaves, strict=True)])


def functions_agree(apply, variables, group, images):
    order = np.random.default_rng(0).permutation(group.size)
    expected = apply(variables, images)
    permuted = permute(variables, group, order)
    difference = jnp.max(jnp.abs(apply(permuted, images) - expected)) / jnp.max(jnp.abs(expected))
    return bool(difference < 1e-5)


def plain_apply(variables, images):
    """Written by hand: bias, 2 x 2 pooling, flattening, two dense layers; no library."""
    params = variables["params"]
    x = jax.lax.conv_general_dilated(
        images, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.relu(x + params["bias"])
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = jax.nn.gelu(x.reshape(len(x), -1) @ params["hidden"])
    return x @ params["out"].T


def plain_variables():
    key = jax.random.key(1)
    shapes = {"kernel": (3, 3, 2, 5), "bias": (5,), "hidden": (2 * 2 * 5, 7), "out": (3, 7)}
    return {
        "params": {name: jax.random.normal(jax.random.fold_in(key, i), s) for i, (name, s) in enumerate(shapes.items())}
    }


class Concatenating(nn.Module):
    """Two convolutions joined by a concatenation, then a depthwise convolution."""

    @nn.compact
    def __call__(self, x, *, train):
        a = nn.relu(nn.Conv(3, (3, 3), name="a")(x))
        b = nn.Conv(4, (3, 3), name="b")(a)
        x = jnp.concatenate([a, b], axis=-1)
        x = nn.Conv(7, (3, 3), feature_group_count=7, name="depthwise")(x)
        x = nn.Conv(6, (1, 1), name="c")(nn.silu(x))
        return nn.Dense(3, name="out")(nn.avg_pool(x, (4, 4)).reshape(len(x), -1))


class Gated(nn.Module):
    """A shared kernel used twice, squeeze-and-excitation, a split, rematerialisation, a convolutional classifier."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(6, (3, 3), name="stem")(x)
        shared = nn.Conv(6, (3, 3), name="shared")
        x = nn.relu(shared(nn.relu(shared(x))))
        gate = nn.Conv(6, (1, 1), name="gate")(x.mean((1, 2), keepdims=True))
        x = x * nn.sigmoid(gate)
        a, b = jnp.split(nn.Conv(8, (1, 1), name="glu")(x), 2, axis=-1)
        x = jax.checkpoint(jnp.tanh)(a) * nn.sigmoid(b)
        return nn.Conv(3, (1, 1), name="classifier")(x).mean((1, 2))


def cases():
    preact, init = registry.build(ModelConfig(name="preact_resnet18", width=4, image_shape=(8, 8, 3)))
    yield (
        "preact_resnet18",
        preact.apply,
        shuffled(jax.eval_shape(init, jax.random.key(0)), jax.random.key(2)),
        (8, 8, 3),
    )
    yield "by hand", plain_apply, plain_variables(), (4, 4, 2)
    gated = Gated()
    start = gated.init(jax.random.key(0), jnp.zeros((1, 4, 4, 2)), train=False)
    yield "gated", lambda v, x: gated.apply(v, x, train=False), shuffled(start, jax.random.key(3)), (4, 4, 2)
    module = Concatenating()
    variables = module.init(jax.random.key(0), jnp.zeros((1, 4, 4, 2)), train=False)
    yield (
        "concatenating",
        lambda v, x: module.apply(v, x, train=False),
        shuffled(variables, jax.random.key(3)),
        (4, 4, 2),
    )


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case[0])
def test_permuting_any_group_keeps_the_function(case):
    _, apply, variables, shape = case
    images = jax.random.normal(jax.random.key(4), (3, *shape))
    graph = trace(apply, variables, images)
    assert len(graph.groups) >= 2
    for group in graph.groups:
        assert functions_agree(apply, variables, group, images)


def test_a_broken_edge_is_noticed(tiny):
    network, variables = tiny
    variables = shuffled(variables, jax.random.key(5))
    images = jax.random.normal(jax.random.key(6), (3, 8, 8, 1))
    for group in trace(network.apply, variables, images).groups:
        for left_out in group.axes:
            broken = Group(group.size, tuple(axis for axis in group.axes if axis != left_out))
            assert not functions_agree(network.apply, variables, broken, images), left_out


def test_main_path_is_told_from_shortcuts_without_names():
    network, init = registry.build(ModelConfig(name="preact_resnet18", width=4, image_shape=(8, 8, 3)))
    graph = trace(network.apply, jax.eval_shape(init, jax.random.key(0)), jnp.zeros((1, 8, 8, 3)))
    assert [layer.name for layer in graph.layers if not layer.main_path and layer.kind == "conv"] == [
        f"params/layer{stage}_0/shortcut/kernel" for stage in (2, 3, 4)
    ]
    assert len(graph.main_convolutions) == 17
    assert graph.layers[-1].kind == "dense"


def test_gates_shared_kernels_and_classifiers():
    _, apply, variables, shape = next(case for case in cases() if case[0] == "gated")
    graph = trace(apply, variables, jnp.zeros((1, *shape)))
    names = [layer.name.split("/")[1] for layer in graph.layers]
    assert names == ["stem", "shared", "gate", "glu", "classifier"]
    assert [layer.name.split("/")[1] for layer in graph.main_convolutions] == ["stem", "shared", "glu"]


def test_pooling_across_neurons_and_computed_kernels_are_refused():
    def pooled(variables, images):
        x = images.reshape(len(images), -1) @ variables["params"]["kernel"]
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2), (1, 1), "SAME")

    def normalised(variables, images):
        kernel = variables["params"]["kernel"]
        return images.reshape(len(images), -1) @ (kernel / jnp.linalg.norm(kernel))

    variables = {"params": {"kernel": jnp.ones((4, 3))}}
    with pytest.raises(InputError, match="cannot follow pooling across neurons"):
        trace(pooled, variables, jnp.zeros((1, 2, 2, 1)))
    with pytest.raises(InputError, match="dense layer whose kernel is computed or reshaped") as caught:
        trace(normalised, variables, jnp.zeros((1, 2, 2, 1)))
    assert "\n" not in str(caught.value)


def test_published_network_has_3904_neurons_on_its_main_path():
    network, init = registry.build(ModelConfig())
    graph = trace(network.apply, jax.eval_shape(init, jax.random.key(0)), jnp.zeros((1, 32, 32, 3)))
    assert sum(layer.neurons for layer in graph.main_convolutions) == 3904


def test_layers_know_who_feeds_them_and_what_they_are_tied_to(tiny):
    network, variables = tiny
    graph = trace(network.apply, variables, jnp.zeros((1, 8, 8, 1)))
    first = graph.layer("params/conv1/kernel")
    assert (first.neuron_axis, first.input_axis, first.neurons, first.inputs, first.fed_by) == (3, 2, 4, 1, {})
    assert first.tied_to == ("params/layer1_0/conv2/kernel",)
    second = graph.layer("params/layer1_0/conv2/kernel")
    assert second.fed_by == {"params/layer1_0/conv1/kernel": (0, 1, 2, 3)}
    names = {vector.name for vector in graph.layer("params/layer1_0/conv1/kernel").vectors}
    bn2 = "layer1_0/bn2"
    assert names == {f"params/{bn2}/{v}" for v in ("scale", "bias")} | {
        f"batch_stats/{bn2}/{v}" for v in ("mean", "var")
    }


def test_flattened_inputs_keep_all_their_positions():
    graph = trace(plain_apply, plain_variables(), jnp.zeros((1, 4, 4, 2)))
    assert graph.layer("params/hidden").inputs == 20
    (group,) = (group for group in graph.groups if group.size == 5)
    (axis,) = (axis for axis in group.axes if axis.name == "params/hidden")
    assert axis == Axis("params/hidden", 0, tuple(range(5)) * 4)


def test_an_operation_that_cannot_be_followed_is_named_with_its_line():
    def sorting(variables, images):
        return jnp.sort(images.reshape(len(images), -1) @ variables["params"]["kernel"], axis=-1)

    variables = {"params": {"kernel": jnp.ones((4, 3))}}
    with pytest.raises(InputError, match=r"operation 'sort'.*test_neurons.py:\d+"):
        trace(sorting, variables, jnp.zeros((1, 2, 2, 1)))


def test_grouped_convolution_is_refused_by_name():
    def grouped(variables, images):
        return jax.lax.conv_general_dilated(
            images, variables["params"]["kernel"], (1, 1), "SAME", feature_group_count=2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        ).mean((1, 2))  # fmt: skip

    def two_layers(variables, images):
        kernel = variables["params"]["first"]
        x = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return grouped(variables, x)

    variables = {"params": {"first": jnp.ones((3, 3, 1, 4)), "kernel": jnp.ones((3, 3, 2, 6))}}
    with pytest.raises(InputError, match="2 groups"):
        trace(two_layers, variables, jnp.zeros((1, 4, 4, 1)))
