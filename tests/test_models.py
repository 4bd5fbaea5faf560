import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from otbr_jax import InputError
from otbr_jax.interop.state_dict import from_state_dict, tensor_name, tensor_shape, to_state_dict
from otbr_jax.models import registry
from otbr_jax.models.layers import BatchNorm, adaptive_avg_pool
from otbr_jax.models.registry import ModelConfig
from otbr_jax.types import check_finite, named_leaves, replace_leaves


def test_batchnorm_follows_pytorch():
    """Running variance with n - 1, momentum 0.1 of the new; the batch itself is normalised with n."""
    x = jax.random.normal(jax.random.key(0), (4, 3, 3, 2)) * 2 + 1
    module = BatchNorm()
    variables = module.init(jax.random.key(0), x, train=True)
    y, state = module.apply(variables, x, train=True, mutable=["batch_stats"])
    flat = np.asarray(x).reshape(-1, 2)
    np.testing.assert_allclose(state["batch_stats"]["mean"], 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state["batch_stats"]["var"], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(y, (x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5), rtol=1e-4, atol=1e-5)
    still = module.apply(variables, x, train=False)
    np.testing.assert_allclose(still, x / np.sqrt(1 + 1e-5), rtol=1e-5)


def test_published_sizes():
    _, init = registry.build(ModelConfig(name="preact_resnet18", width=64, image_shape=(32, 32, 3)))
    params = jax.eval_shape(init, jax.random.key(0))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 11_171_146
    assert "bn" not in params  # no BatchNorm before the pool


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"name": "preact_resnet8"},
            r"model.name: expected one of .* 'preact_resnet8'; did you mean 'preact_res",
        ),
        ({"width": -1}, "model.width: expected a whole number of at least 0, found -1"),
        ({"width": 200, "name": "vit_b_16"}, "model.width: expected a multiple of its 3 attention heads, found 200"),
        (
            {"depth": (1, 1)},
            r"model.depth: expected a number of at least 1 for each of \(2, 2, 2, 2\), found \(1, 1\)",
        ),
        (
            {"depth": (0,), "name": "vit_b_16"},
            "model.depth: expected a list of whole numbers of at least 1, found 0 among them",
        ),
        ({"num_classes": 0}, "model.num_classes: expected a whole number of at least 1, found 0"),
        ({"image_shape": (8, 8)}, r"model.image_shape: expected a list of 3 whole numbers .*, found \(8, 8\)"),
        ({"image_shape": (8, 40, 3), "name": "vit_b_16"}, "model.image_shape: expected multiples of 16, found 8 x 40"),
        *(
            ({"image_shape": (16, 40, 3), "name": name}, "model.image_shape: expected images large enough .* 0 x 1 pos")
            for name in ("vgg11_bn", "densenet121", "convnext_tiny")
        ),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        registry.build(ModelConfig(**settings))


@pytest.mark.parametrize("name", registry.ARCHITECTURES)
def test_another_width_depth_input_and_number_of_classes(name):
    depth = tuple(1 for _ in registry.ARCHITECTURES[name].keywords["depth"])
    network, init = registry.build(ModelConfig(name=name, width=8, depth=depth, image_shape=(32, 48, 1), num_classes=3))
    variables = jax.eval_shape(init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, 32, 48, 1), jnp.float32)
    assert jax.eval_shape(network.apply, variables, images).shape == (2, 3)
    logits, state = jax.eval_shape(network.train, variables, images)
    assert logits.shape == (2, 3)
    assert {"params": variables["params"], **state} == variables


def test_a_nan_is_named(moved):
    _, variables, *_ = moved
    name = "params/layer2.0/conv1/kernel"
    broken = replace_leaves(variables, {name: named_leaves(variables)[name].at[0, 0, 0, 0].set(jnp.nan)})
    check_finite(variables)
    with pytest.raises(InputError, match=f"expected finite weights, found 1 NaN or infinite values in {name}"):
        check_finite(broken)


CLASSES = 5
RATE = 0.1
TRAINED = ("resnet18", "vgg11_bn", "vit_b_16")
# At the published widths and depths, except that a quarter of a VGG's and a ViT's width does, for the time it takes.
CONFIGS = {
    config.name: dataclasses.replace(config, num_classes=CLASSES)
    for config in (
        ModelConfig("preact_resnet18", image_shape=(16, 16, 3)),
        ModelConfig("preact_resnet34", image_shape=(16, 16, 3)),
        ModelConfig("preact_resnet50", image_shape=(16, 16, 3)),
        ModelConfig("resnet18", image_shape=(64, 64, 3)),
        ModelConfig("resnet50", image_shape=(64, 64, 3)),
        ModelConfig("vgg16_bn_cifar", width=16, image_shape=(32, 32, 3)),
        ModelConfig("vgg16_cifar", width=16, image_shape=(32, 32, 3)),
        ModelConfig("resnet18_cifar", image_shape=(16, 16, 3)),
        ModelConfig("resnet50_cifar", image_shape=(16, 16, 3)),
        ModelConfig("resnet20_cifar", image_shape=(16, 16, 3)),
        ModelConfig("resnet56_cifar", image_shape=(16, 16, 3)),
        ModelConfig("resnet20_cifar_padded", image_shape=(16, 16, 3)),
        ModelConfig("wide_resnet28_10", width=32, image_shape=(16, 16, 3)),
        ModelConfig("mobilenet_v2_cifar", image_shape=(16, 16, 3)),
        ModelConfig("mobilenet_v3_large", image_shape=(64, 64, 3)),
        ModelConfig("efficientnet_b0", image_shape=(64, 64, 3)),
        ModelConfig("vgg11_bn", width=16, image_shape=(32, 32, 3)),
        ModelConfig("vgg16_bn", width=16, image_shape=(32, 32, 3)),
        ModelConfig("vgg19_bn", width=16, image_shape=(32, 32, 3)),
        ModelConfig("densenet121", image_shape=(64, 64, 3)),
        ModelConfig("convnext_tiny", image_shape=(64, 64, 3)),
        ModelConfig("vit_b_16", width=192, image_shape=(32, 32, 3)),
    )
}


@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (5, 9), (14, 10)])
def test_adaptive_pooling_follows_pytorch(shape):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    expected = torch.nn.AdaptiveAvgPool2d(7)(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(adaptive_avg_pool(x, 7), expected.transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="session")
def torch_networks():
    pytest.importorskip("torch")
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    return importlib.import_module("torch_networks")


def relative(values, expected):
    return float(np.max(np.abs(values - expected)) / np.max(np.abs(expected)))


@pytest.mark.parametrize("name", CONFIGS)
def test_names_and_shapes_of_the_published_network(torch_networks, name):
    expected = {leaf: tuple(tensor.shape) for leaf, tensor in torch_networks.original(name).state_dict().items()}
    _, init = registry.build(ModelConfig(name, image_shape=(224, 224, 3), num_classes=1000))
    leaves = named_leaves(jax.eval_shape(init, jax.random.key(0)))
    tensors = {tensor_name(leaf): tensor_shape(leaf, spec.shape) for leaf, spec in leaves.items()}
    assert tensors == {leaf: shape for leaf, shape in expected.items() if not leaf.endswith("num_batches_tracked")}


# Deep, or of the blocks of a smaller one; their names and shapes are those of the published networks all the same.
FAST = ("preact_resnet18", "resnet18", "vgg11_bn", "resnet20_cifar_padded")
SLOW = {name: pytest.mark.slow for name in CONFIGS if name not in FAST}


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in CONFIGS])
def test_same_network_as_in_pytorch(torch_networks, name):
    """Names, arrays, logits in both modes, running statistics, and (of some) the weights after one step of SGD."""
    config = CONFIGS[name]
    size = config.image_shape[0]
    model = torch_networks.build(name, num_classes=CLASSES, image_size=size, width=config.width)
    before = torch_networks.tensors(model)
    network, init = registry.build(config)
    variables = from_state_dict(before, jax.eval_shape(init, jax.random.key(0)))
    tensors = to_state_dict(variables)
    assert tensors.keys() == before.keys()
    assert all(np.array_equal(tensors[leaf], before[leaf]) for leaf in before)

    variables = jax.tree.map(jnp.asarray, variables)
    images = np.random.default_rng(1).normal(size=(4, *config.image_shape)).astype(np.float32)
    labels = np.arange(len(images)) % CLASSES
    logits = jax.jit(network.apply)(variables, images)
    errors = {"evaluation": relative(logits, torch_networks.evaluate(model, images))}

    def loss(params):
        logits, state = network.train({**variables, "params": params}, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), (logits, state)

    if name in TRAINED:
        gradient, (logits, state) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
        params = jax.tree.map(lambda p, g: p - RATE * g, variables["params"], gradient)
    else:
        logits, state = jax.jit(network.train)(variables, images)
        params = {}
    errors["training"] = relative(logits, torch_networks.train_step(model, images, labels, learning_rate=RATE))
    after = torch_networks.tensors(model)
    tensors = {
        leaf: array for leaf, array in to_state_dict({"params": params, **state}).items() if leaf[-8:] != "_tracked"
    }
    each = {leaf: relative(array, after[leaf]) for leaf, array in tensors.items()}
    errors["statistics"] = max((error for leaf, error in each.items() if "running" in leaf), default=0.0)
    if name in TRAINED:
        weights = [leaf for leaf in tensors if "running" not in leaf]
        errors["weights"] = max(each[leaf] for leaf in weights)
        # How far the two steps are apart, in units of the step: the weights themselves would hide most of a small one.
        apart = sum(np.sum((tensors[leaf] - after[leaf]) ** 2) for leaf in weights)
        errors["step"] = float(apart / sum(np.sum((before[leaf] - after[leaf]) ** 2) for leaf in weights)) ** 0.5
    print(name, {measured: f"{error:.1e}" for measured, error in errors.items()})
    assert max(errors.values()) < 1e-4
