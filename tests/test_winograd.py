from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from otbr_jax.numerics import winograd
from otbr_jax.numerics.convolutions import channels_last

LAYOUTS = [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")]


def layer(*, size=(6, 7), padding=((1, 1), (1, 1)), layout=LAYOUTS[0], images=5, into=64, out=65, **options):
    """`(function, arguments)`: outputs of a 3x3 convolution, and gradients of a weighted sum with respect to both."""
    dtype = options.pop("dtype", jnp.float32)
    sizes = {"N": images, "H": size[0], "W": size[1], "C": into}
    kernel_sizes = {"H": 3, "W": 3, "I": into // options.get("feature_group_count", 1), "O": out}
    x = jax.random.normal(jax.random.key(0), tuple(sizes[axis] for axis in layout[0]), dtype)
    kernel = jax.random.normal(jax.random.key(1), tuple(kernel_sizes[axis] for axis in layout[1]), dtype)
    strides = options.pop("strides", (1, 1))

    def outputs(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout, **options)

    weights = jax.random.normal(jax.random.key(2), jax.eval_shape(outputs, x, kernel).shape, dtype)

    def loss(x, kernel):
        y = outputs(x, kernel)
        return jnp.sum(weights * y), y

    return jax.grad(loss, argnums=(0, 1), has_aux=True), (x, kernel)


def assert_rounded(actual, expected):
    """Equal but for the rounding of sums of many terms in float32."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def convolutions(function, arguments):
    return jax.jit(function).lower(*arguments).as_text().count("stablehlo.convolution")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(4, 4), (6, 7), (9, 5)])
@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((2, 1), (1, 2))])
def test_outputs_and_gradients_do_not_change(layout, size, padding):
    gradients, arguments = layer(size=size, padding=padding, layout=layout)
    rewritten = jax.jit(channels_last(gradients))
    assert_rounded(rewritten(*arguments), jax.jit(gradients)(*arguments))
    assert convolutions(rewritten, arguments) == 0


@pytest.mark.parametrize("values", [1, 12 * 64 * 2, 10**6])
def test_images_take_turns(values, monkeypatch):
    """One, two of which the last has one, and all of them at a time."""
    for function in (winograd.convolution, winograd.kernel_gradient):
        monkeypatch.setitem(function.__kwdefaults__, "values", values)
    gradients, arguments = layer()
    assert_rounded(jax.jit(channels_last(gradients))(*arguments), jax.jit(gradients)(*arguments))


def test_padding_below_zero():
    gradients, arguments = layer(size=(9, 9), padding=((-1, 0), (0, -2)))
    assert_rounded(jax.jit(channels_last(gradients))(*arguments), jax.jit(gradients)(*arguments))


@pytest.mark.parametrize(
    "options",
    [
        {"strides": (2, 2)},
        {"rhs_dilation": (2, 2), "padding": ((2, 2), (2, 2))},
        {"feature_group_count": 2, "into": 128, "out": 128},
        {"out": 63},
        {"into": 63},
        {"size": (3, 8)},
        {"images": 1},  # fewer positions than channels
        {"dtype": jnp.bfloat16},
    ],
)
def test_others_stay_as_they_are(options, monkeypatch):
    def never(*_, **__):
        pytest.fail("became Winograd's")

    for name in ("convolution", "kernel_gradient"):
        monkeypatch.setattr(winograd, name, never)
    gradients, arguments = layer(**options)
    jax.make_jaxpr(channels_last(gradients))(*arguments)


def test_other_devices_convolve():
    gradients, arguments = layer()
    lowered = jax.jit(channels_last(gradients)).trace(*arguments).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("stablehlo.convolution") == 3


def test_many_networks_loops_and_gradients_of_gradients():
    gradients, (x, kernel) = layer()
    rewritten = channels_last(gradients)
    xs, kernels = jnp.stack([x, x + 1]), jnp.stack([kernel, 2 * kernel])
    expected = jax.jit(jax.vmap(gradients))(xs, kernels)
    assert_rounded(jax.jit(jax.vmap(rewritten))(xs, kernels), expected)
    assert_rounded(jax.lax.scan(lambda _, both: (None, rewritten(*both)), None, (xs, kernels))[1], expected)

    def length(gradients):
        return jax.jit(
            jax.grad(lambda x, kernel: sum(jnp.sum(part**2) for part in jax.tree.leaves(gradients(x, kernel))))
        )

    assert_rounded(length(rewritten)(x, kernel), length(gradients)(x, kernel))


def test_on_a_mapped_axis():
    gradients, (x, kernel) = layer(images=64)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def kernel_gradient(x, kernel):
        return channels_last(gradients)(x, kernel)[0][1]

    @partial(jax.shard_map, mesh=mesh, in_specs=(P("data"), P()), out_specs=P())
    def mapped(x, kernel):
        return jax.lax.pmean(kernel_gradient(x, jax.lax.pcast(kernel, "data", to="varying")), "data")

    assert_rounded(jax.jit(mapped)(x, kernel), jax.jit(gradients)(x, kernel)[0][1])
