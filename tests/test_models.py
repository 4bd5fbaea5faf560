import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otbr_jax import InputError
from otbr_jax.models import registry
from otbr_jax.models.layers import BatchNorm
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
        ({"width": 0}, "model.width: expected at least 1, found 0"),
        ({"num_classes": 0}, "model.num_classes: expected at least 1, found 0"),
        ({"image_shape": (8, 8)}, r"model.image_shape: expected \(height, width, channels\), found \(8, 8\)"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        registry.build(ModelConfig(**settings))


def test_a_nan_is_named(tiny):
    _, variables = tiny
    name = "params/layer2_0/conv1/kernel"
    broken = replace_leaves(variables, {name: named_leaves(variables)[name].at[0, 0, 0, 0].set(jnp.nan)})
    check_finite(variables)
    with pytest.raises(InputError, match=f"expected finite weights, found 1 NaN or infinite values in {name}"):
        check_finite(broken)
