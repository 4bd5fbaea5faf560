import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otbr_jax.steps.convolutions import channels_last


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize("layout", [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")])
@pytest.mark.parametrize("groups", [1, 2])
def test_values_and_gradients_do_not_change(strides, layout, groups):
    x = jax.random.normal(jax.random.key(0), (2, 6, 7, 4) if layout[0] == "NHWC" else (2, 4, 6, 7))
    shape = (3, 3, 4 // groups, 6) if layout[1] == "HWIO" else (6, 4 // groups, 3, 3)
    kernel = jax.random.normal(jax.random.key(1), shape)

    @jax.jit
    def loss(x, kernel):
        y = jax.lax.conv_general_dilated(
            x, kernel, strides, "SAME", dimension_numbers=layout, feature_group_count=groups
        )
        return jnp.sum(jax.nn.relu(y) ** 2), y

    expected = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(x, kernel)
    found = channels_last(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(x, kernel)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


def test_gradients_are_in_the_fast_layout():
    def loss(kernel, x):
        return jnp.sum(
            jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        )

    arguments = jnp.ones((3, 3, 2, 4)), jnp.ones((1, 5, 5, 2))
    jaxpr = jax.make_jaxpr(channels_last(jax.grad(loss, argnums=(0, 1))))(*arguments)
    layouts = {eqn.params["dimension_numbers"] for eqn in jaxpr.eqns if eqn.primitive.name == "conv_general_dilated"}
    assert layouts == {jax.lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))}
