import functools

import jax
import jax.numpy as jnp
import pytest
from strange_networks import CASES, plain, shuffled

from otbr_jax import InputError, check_graph, permutation_error, trace
from otbr_jax.graph.graph import Axis, Group, Layer, NeuronGraph
from otbr_jax.models import registry
from otbr_jax.models.registry import ModelConfig

# One of each kind, in sizes that keep the tests short: (width, depth, image side).
OF_REGISTRY = {
    "preact_resnet10": (4, (1, 1, 1, 1), 8),
    "preact_resnet50": (4, (2, 1, 1, 1), 8),
    "resnet18": (4, (1, 1, 1, 1), 32),
    "resnet50": (4, (2, 1, 1, 1), 32),
    "resnet20_cifar_padded": (4, (1, 1, 1), 8),
    "wide_resnet28_10": (4, (1, 1, 1), 8),
    "mobilenet_v2_cifar": (4, (1, 1, 1, 1, 1, 1, 1), 8),
    "mobilenet_v3_large": (8, (1, 1, 1, 1, 1, 1), 32),
    "efficientnet_b0": (8, (1, 1, 1, 1, 1, 1, 1), 32),
    "vgg7_bn": (4, (1, 1, 2, 1), 8),
    "vgg11_bn": (4, (1, 1, 1, 1, 1), 32),
    "densenet121": (8, (2, 2, 1, 1), 32),
    "convnext_tiny": (8, (1, 2, 1, 1), 32),
    "vit_b_16": (128, (2,), 32),
}


def of_registry(name):
    width, depth, side = OF_REGISTRY[name]
    network, init = registry.build(
        ModelConfig(name=name, width=width, depth=depth, image_shape=(side, side, 3), num_classes=5)
    )
    return network.apply, jax.eval_shape(init, jax.random.key(0)), (side, side, 3)


@functools.cache
def traced(name):
    apply, like, shape = CASES[name]() if name in CASES else of_registry(name)
    variables = shuffled(like, jax.random.key(2))
    images = jax.random.normal(jax.random.key(4), (3, *shape))
    return jax.jit(apply), variables, images, trace(apply, variables, images)


# With weights drawn at random their gates let so little through that no broken edge of a first layer is noticed.
FADING = ("mobilenet_v3_large", "efficientnet_b0")

# One of each way that neurons are fed; the others, which take longer to compile, in the slow run.
FAST = ("plain", "concatenating", "grouped", "fused attention", "group norm", "preact_resnet10")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in (*CASES, *OF_REGISTRY)],
)
def test_permuting_any_group_keeps_the_function_and_a_broken_edge_is_noticed(name):
    apply, variables, images, graph = traced(name)
    assert len(graph.groups) >= 2
    error = lambda group: permutation_error(apply, variables, group, images, key=jax.random.key(3))  # noqa: E731
    for group in graph.groups:
        assert error(group) < 1e-5
    if name in FADING:
        return
    # Deep networks have hundreds of axes; the first groups show what there is to show.
    for group in graph.groups[:6]:
        for left_out in group.axes:
            broken = Group(group.size, tuple(axis for axis in group.axes if axis != left_out))
            # An attention's key bias adds the same to all scores of a softmax: nothing can be noticed there.
            assert error(broken) > 3e-5 or "key/bias" in left_out.name, left_out


def test_every_layer_but_the_first_is_fed_and_every_neuron_moves():
    for name in ("fused attention", "attending", "nnx", "haiku", "equinox", "group norm"):
        _, variables, _, graph = traced(name)
        check_graph(graph, variables)
        grouped = {(axis.name, axis.axis) for group in graph.groups for axis in group.axes}
        for layer in graph.layers[1:]:
            assert layer.fed_by, layer.name
            assert all(max(column) >= 0 for column in zip(*layer.fed_by.values(), strict=True)), layer.name
        for layer in graph.layers[:-1]:
            assert all((layer.name, axis) in grouped for axis in layer.neuron_axes), (name, layer.name)


def test_attention_heads_move_as_one_and_inside_a_head_values_move_apart_from_queries():
    _, _, _, graph = traced("fused attention")
    (heads,) = (group for group in graph.groups if group.size == 2)
    assert {(axis.name, axis.axis) for axis in heads.axes} == {
        ("params/qkv", 1), ("params/qkv_bias", 0), ("params/proj", 0)
    }  # fmt: skip
    # Queries with keys in each of two heads, values with the output projection in each.
    assert sorted(len(group.axes) for group in graph.groups if group.size == 3) == [2, 2, 3, 3]
    attending = traced("attending")[3]
    query = next(layer for layer in attending.layers if "query" in layer.name)
    out = next(layer for layer in attending.layers if "/out/" in layer.name)
    assert (query.neuron_axes, query.input_axes, query.neurons) == ((1, 2), (0,), 6)
    assert (out.neuron_axes, out.input_axes, out.inputs) == ((2,), (0, 1), 6)
    (value,) = (name for name in out.fed_by if "value" in name)
    assert out.fed_by[value] == tuple(range(6))


def test_positions_pixels_and_classes_never_move():
    _, _, _, graph = traced("mixer")
    assert not any((axis.name, axis.axis) == ("params/tokens_down", 1) for group in graph.groups for axis in group.axes)
    _, _, _, graph = traced("concatenated relu")
    assert not any(axis.name == "params/same" for group in graph.groups for axis in group.axes)
    assert not graph.layers[-1].main_path


def test_what_is_treated_differently_does_not_change_places():
    _, _, _, graph = traced("parts")
    sizes = {group.size for group in graph.groups if any(axis.name == "params/first" for axis in group.axes)}
    assert sizes == {2, 4}  # channels 1 and 2, which are rolled, and the second half; channel 0 is the gate, 3 is alone
    _, _, _, graph = traced("fixed filters")
    assert not any(axis.name == "params/first" for group in graph.groups for axis in group.axes)


def test_the_same_shortcut_has_the_same_neurons_however_it_is_written():
    graphs = {name: trace(*case()[:2], jnp.zeros((1, *case()[2]))) for name, case in CASES.items() if "widened" in name}
    graphs.pop("widened, set one by one")  # a channel that is alone has no other to change places with
    assert len(graphs) == 5
    expected = graphs["widened, padded"]
    assert max(len(group.axes) for group in expected.groups) > 2
    for name, graph in graphs.items():
        assert graph.layers == expected.layers, name
        assert sorted(graph.groups) == sorted(expected.groups), name


def test_places_that_the_data_choose_are_refused():
    def put(variables, images):
        x = images.reshape(len(images), -1) @ variables["params"]["first"]
        start = jnp.int32(images[0, 0, 0, 0])
        return jax.lax.dynamic_update_slice(jnp.zeros((len(x), 5)), x, (0, start)) @ variables["params"]["out"]

    with pytest.raises(InputError, match=r"cannot follow neurons that are put to places chosen by numbers, in "):
        trace(put, {"params": {"first": jnp.ones((4, 3)), "out": jnp.ones((5, 2))}}, jnp.zeros((1, 2, 2, 1)))


def test_the_number_of_a_neuron_is_refused():
    def routed(variables, images):
        x = images.reshape(len(images), -1) @ variables["params"]["first"]
        return jax.nn.one_hot(x.argmax(-1), 3) @ variables["params"]["out"]

    with pytest.raises(InputError, match=r"cannot follow the number of a neuron, in .*argmax"):
        trace(routed, {"params": {"first": jnp.ones((4, 3)), "out": jnp.ones((3, 2))}}, jnp.zeros((1, 2, 2, 1)))


def test_grouped_convolutions_read_their_own_channels():
    _, _, _, graph = traced("grouped")
    grouped, depthwise = graph.layer("params/grouped"), graph.layer("params/depthwise")
    assert (grouped.kind, grouped.neurons, grouped.inputs) == ("grouped", 6, 12)
    assert grouped.fed_by == {"params/reduce": tuple(range(12))}
    assert (depthwise.kind, depthwise.neurons, depthwise.inputs) == ("depthwise", 10, 5)
    assert [layer.name for layer in graph.main_convolutions] == ["params/reduce", "params/expand"]


def test_a_graph_stated_by_hand_is_checked():
    variables = shuffled(plain()[1], jax.random.key(0))
    first = Layer("params/kernel", "conv", (3,), (2,), 5, 2)
    hidden = Layer("params/hidden", "dense", (1,), (0,), 7, 20, fed_by={"params/kernel": tuple(range(5)) * 4})
    check_graph(NeuronGraph((first, hidden)), variables)
    for wrong, message in (
        (first._replace(name="params/kernle"), "none of that name"),
        (first._replace(kind="convolution"), "found 'convolution'"),
        (first._replace(neuron_axes=(4,)), r"axes of an array of shape \(3, 3, 2, 5\)"),
        (first._replace(neurons=6), "expected neurons=5"),
        (first._replace(inputs=3), "expected inputs=2"),
        (hidden, "earlier layers"),
    ):
        with pytest.raises(InputError, match=message):
            check_graph(NeuronGraph((wrong,)), variables)
    with pytest.raises(InputError, match=r"20 neurons in -1\.\.4"):
        check_graph(NeuronGraph((first, hidden._replace(fed_by={"params/kernel": (5,) * 20}))), variables)
    with pytest.raises(InputError, match="no such axis"):
        check_graph(NeuronGraph((first,), (Group(2, (Axis("params/bias", 0, (0, 1)),)),)), variables)


def test_main_path_is_told_from_shortcuts_without_names():
    network, init = registry.build(ModelConfig(name="preact_resnet18", width=4, image_shape=(8, 8, 3)))
    graph = trace(network.apply, jax.eval_shape(init, jax.random.key(0)), jnp.zeros((1, 8, 8, 3)))
    assert [layer.name for layer in graph.layers if not layer.main_path and layer.kind == "conv"] == [
        f"params/layer{stage}.0/shortcut.0/kernel" for stage in (2, 3, 4)
    ]
    assert len(graph.main_convolutions) == 17
    assert graph.layers[-1].kind == "dense"


def test_gates_shared_kernels_and_classifiers():
    _, _, _, graph = traced("gated")
    names = [layer.name.split("/")[1] for layer in graph.layers]
    assert names == ["stem", "shared", "gate", "glu", "classifier"]
    assert [layer.name.split("/")[1] for layer in graph.main_convolutions] == ["stem", "shared", "glu"]


def test_pooling_across_neurons_and_computed_kernels_are_refused():
    def pooled(variables, images):
        x = images.reshape(len(images), -1) @ variables["params"]["kernel"]
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2), (1, 1), "SAME")

    def mixed(variables, images):
        return images.reshape(len(images), -1) @ (variables["params"]["kernel"] + variables["params"]["other"])

    variables = {"params": {"kernel": jnp.ones((4, 3)), "other": jnp.ones((4, 3))}}
    with pytest.raises(InputError, match="cannot follow pooling across neurons"):
        trace(pooled, variables, jnp.zeros((1, 2, 2, 1)))
    with pytest.raises(InputError, match="dense layer whose kernel is computed") as caught:
        trace(mixed, variables, jnp.zeros((1, 2, 2, 1)))
    assert "\n" not in str(caught.value)


def test_published_network_has_3904_neurons_on_its_main_path():
    network, init = registry.build(ModelConfig())
    graph = trace(network.apply, jax.eval_shape(init, jax.random.key(0)), jnp.zeros((1, 32, 32, 3)))
    assert sum(layer.neurons for layer in graph.main_convolutions) == 3904


def test_layers_know_who_feeds_them_and_what_they_are_tied_to(moved):
    *_, graph = moved
    first = graph.layer("params/conv1/kernel")
    assert (first.neuron_axes, first.input_axes, first.neurons, first.inputs, first.fed_by) == ((3,), (2,), 4, 1, {})
    assert first.tied_to == ("params/layer1.0/conv2/kernel",)
    second = graph.layer("params/layer1.0/conv2/kernel")
    assert second.fed_by == {"params/layer1.0/conv1/kernel": (0, 1, 2, 3)}
    names = {vector.name for vector in graph.layer("params/layer1.0/conv1/kernel").vectors}
    bn2 = "layer1.0/bn2"
    assert names == {f"params/{bn2}/{v}" for v in ("scale", "bias")} | {
        f"batch_stats/{bn2}/{v}" for v in ("mean", "var")
    }


def test_flattened_inputs_keep_all_their_positions():
    _, _, _, graph = traced("plain")
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


def test_loops_over_layers_are_refused_by_name():
    def scanned(variables, images):
        def step(x, kernel):
            return jnp.tanh(x @ kernel), None

        return jax.lax.scan(step, images.reshape(len(images), -1), variables["params"]["kernels"])[0]

    with pytest.raises(InputError, match=r"operation 'scan'.*test_neurons.py:\d+"):
        trace(scanned, {"params": {"kernels": jnp.ones((2, 4, 4))}}, jnp.zeros((1, 2, 2, 1)))
