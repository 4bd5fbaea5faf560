from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from otbr_jax.numerics.convolutions import channels_last
from otbr_jax.numerics.products import summed_products


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

    gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    expected, results = (jax.jit(function)(x, kernel) for function in (gradients, channels_last(gradients)))
    assert jax.tree.structure(results) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), results, expected)


def test_gradients_are_in_the_fast_layout():
    def loss(kernel, x):
        return jnp.sum(
            jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        )

    arguments = jnp.ones((3, 3, 2, 4)), jnp.ones((1, 5, 5, 2))
    jaxpr = jax.make_jaxpr(channels_last(jax.grad(loss, argnums=(0, 1))))(*arguments)
    layouts = {eqn.params["dimension_numbers"] for eqn in jaxpr.eqns if eqn.primitive.name == "conv_general_dilated"}
    assert layouts == {jax.lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))}


LAYOUTS = [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")]
# Kernel size, stride, padding, dilation; sizes that stride does not divide give paddings below zero.
CASES = [
    (3, 1, 1, 1),
    (3, 2, 1, 1),
    (1, 1, 0, 1),
    (1, 2, 0, 1),
    (2, 2, 0, 1),
    (4, 2, 1, 1),
    (3, 3, 0, 1),
    (3, 1, 2, 2),
    (7, 2, 3, 1),
]


def kernel_gradient(size, stride, padding, dilation, layout=LAYOUTS[0], images=5, out=64, dtype=jnp.float32):
    """`(function, arguments)`: the kernel gradient of a weighted sum of a convolution's outputs."""
    shape = {"N": images, "H": 9, "W": 8, "C": 3, "I": 3, "O": out}
    kernel_shape = shape | {"H": size, "W": size}
    x, kernel = (
        jax.random.normal(jax.random.key(i), tuple(sizes[axis] for axis in axes), dtype)
        for i, (axes, sizes) in enumerate([(layout[0], shape), (layout[1], kernel_shape)])
    )

    def outputs(kernel, x):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride,) * 2, [(padding,) * 2] * 2, rhs_dilation=(dilation,) * 2, dimension_numbers=layout
        )

    weights = jax.random.normal(jax.random.key(2), jax.eval_shape(outputs, kernel, x).shape, dtype)
    return jax.grad(lambda kernel, x: jnp.sum(weights * outputs(kernel, x))), (kernel, x)


def operations(lowered):
    """Which of the two kinds a program has."""
    return {kind for kind in ("convolution", "dot_general") if f"stablehlo.{kind}" in lowered.as_text()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("positions", "layout"), [(1, LAYOUTS[0]), (150, LAYOUTS[1]), (10_000, LAYOUTS[0])])
def test_kernel_gradients_are_sums_of_products(case, layout, positions, monkeypatch):
    """Whatever the images per product: one, some of which the last product may have fewer, all of them."""
    monkeypatch.setitem(summed_products.__kwdefaults__, "positions", positions)
    gradient, arguments = kernel_gradient(*case, layout=layout)
    rewritten = jax.jit(channels_last(gradient))
    np.testing.assert_allclose(rewritten(*arguments), jax.jit(gradient)(*arguments), rtol=1e-4, atol=1e-4)
    assert operations(rewritten.lower(*arguments)) == {"dot_general"}


def test_other_devices_convolve():
    gradient, arguments = kernel_gradient(3, 1, 1, 1)
    lowered = jax.jit(channels_last(gradient)).trace(*arguments).lower(lowering_platforms=("cuda",))
    assert operations(lowered) == {"convolution"}


@pytest.mark.parametrize(("size", "out"), [(3, 63), (8, 64)])
def test_kernel_gradients_of_few_channels_or_large_kernels_stay_convolutions(size, out):
    gradient, arguments = kernel_gradient(size, 1, 3, 1, out=out)
    assert operations(jax.jit(channels_last(gradient)).lower(*arguments)) == {"convolution"}


def test_half_precision_sums_in_full():
    gradient, arguments = kernel_gradient(3, 1, 1, 1, images=64, dtype=jnp.bfloat16)
    expected = gradient(*(part.astype(jnp.float32) for part in arguments))
    grads = channels_last(gradient)(*arguments)
    assert grads.dtype == jnp.bfloat16
    np.testing.assert_allclose(grads.astype(jnp.float32), expected, rtol=0.02, atol=0.2)


def test_kernel_gradients_of_many_networks_and_of_gradients():
    """Under `vmap` over kernels or images, and differentiated once more."""
    gradient, (kernel, x) = kernel_gradient(3, 2, 1, 1)
    rewritten = channels_last(gradient)
    kernels, several = jnp.stack([kernel, 2 * kernel]), jnp.stack([x, x + 1])
    expected = jax.jit(jax.vmap(gradient))(kernels, several)
    for function in (jax.vmap(rewritten), channels_last(jax.vmap(gradient))):
        np.testing.assert_allclose(jax.jit(function)(kernels, several), expected, rtol=1e-4, atol=1e-4)

    def length(gradient):
        return jax.jit(jax.grad(lambda x: jnp.sum(gradient(kernel, x) ** 2)))(x)

    np.testing.assert_allclose(length(rewritten), length(gradient), rtol=1e-3, atol=1e-3)


def test_kernel_gradients_on_a_mapped_axis():
    gradient, (kernel, x) = kernel_gradient(3, 1, 1, 1, images=64)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    @partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    def mapped(kernel, x):
        return jax.lax.pmean(channels_last(gradient)(jax.lax.pcast(kernel, "data", to="varying"), x), "data")

    np.testing.assert_allclose(jax.jit(mapped)(kernel, x), gradient(kernel, x), rtol=1e-4, atol=1e-4)


def test_kernel_gradients_of_transposed_convolutions():
    x, kernel = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(5, 4, 5, 3), (4, 4, 3, 64)]))
    gradient = jax.grad(lambda kernel, x: jnp.sum(jnp.sin(jax.lax.conv_transpose(x, kernel, (2, 2), "SAME"))))
    compiled = jax.jit(channels_last(gradient))
    np.testing.assert_allclose(compiled(kernel, x), gradient(kernel, x), rtol=1e-4, atol=1e-4)
    assert operations(compiled.lower(kernel, x)) == {"convolution", "dot_general"}
