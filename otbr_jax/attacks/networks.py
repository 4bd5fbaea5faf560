"""The small networks that attacks train for themselves: plain functions over a list of kernels, no state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from otbr_jax.inversion import descend

Params = Sequence[dict[str, jax.Array]]


def init_layers(key: jax.Array, widths: Sequence[tuple[int, int]], *, size: int = 3) -> list[dict[str, jax.Array]]:
    """Kernels `[size, size, into, out]` (He et al., fan-in), zero biases and unit scales of a chain of convolutions."""
    he = jax.nn.initializers.he_normal()
    return [
        {"kernel": he(k, (size, size, *width)), "scale": jnp.ones(width[1]), "bias": jnp.zeros(width[1])}
        for k, width in zip(jax.random.split(key, len(widths)), widths, strict=True)
    ]


def conv(params: dict[str, jax.Array], x: jax.Array, *, stride: int = 1, norm: bool = True) -> jax.Array:
    """A convolution of `x [n, h, w, c]` with 'SAME' padding; with `norm` each channel is normalised over its own image.

    Normalising by image rather than by batch needs no running statistics.
    """
    numbers = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, params["kernel"], (stride, stride), "SAME", dimension_numbers=numbers)
    if norm:
        x = x - jnp.mean(x, axis=(1, 2), keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=(1, 2), keepdims=True) + 1e-5)
    return x * params["scale"] + params["bias"]


def enlarge(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`x [n, h, w, c]` repeated to the height and width of `shape` (nearest neighbour)."""
    return jax.image.resize(x, (x.shape[0], *shape[1:3], x.shape[3]), "nearest")


class UNet(NamedTuple):
    """A convolutional encoder and decoder with one skip connection; see `unet`."""

    down: list[dict[str, jax.Array]]
    up: list[dict[str, jax.Array]]


def init_unet(key: jax.Array, *, into: int, out: int, channels: int) -> UNet:
    """Parameters of `unet` for `into` input and `out` output channels."""
    down_key, up_key = jax.random.split(key)
    down = init_layers(down_key, [(into, channels), (channels, 2 * channels), (2 * channels, 2 * channels)])
    return UNet(down, init_layers(up_key, [(3 * channels, channels), (channels, out)]))


def unet(params: UNet, x: jax.Array) -> jax.Array:
    """Maps `x [n, h, w, into]` to `[n, h, w, out]`, unbounded; half resolution in the middle."""
    first = jax.nn.relu(conv(params.down[0], x))
    middle = jax.nn.relu(conv(params.down[1], first, stride=2))
    middle = jax.nn.relu(conv(params.down[2], middle))
    joined = jnp.concatenate([first, enlarge(middle, x.shape)], axis=-1)
    return conv(params.up[1], jax.nn.relu(conv(params.up[0], joined)), norm=False)


def fit(
    params: Any,
    loss: Callable[[Any, jax.Array, jax.Array], jax.Array],
    images: jax.Array,
    *,
    key: jax.Array,
    steps: int,
    batch_size: int,
    learning_rate: float,
    on_step: Callable[[], None] | None,
) -> Any:
    """Minimises `loss(params, images in [0, 1], key)` with Adam over random batches of uint8 images, in one scan."""
    batch_size, keys = min(batch_size, len(images)), jax.random.split(key, steps)

    def draw(number: jax.Array) -> tuple[jax.Array, jax.Array]:
        draw_key, loss_key = jax.random.split(keys[number])
        chosen = jax.random.choice(draw_key, len(images), (batch_size,), replace=False)
        return images[chosen].astype(jnp.float32) / 255, loss_key

    return descend(
        lambda params, batch, _: loss(params, *batch),
        params,
        optimizer=optax.adam(learning_rate),
        steps=steps,
        batches=draw,
        on_step=on_step,
    )[0].point
