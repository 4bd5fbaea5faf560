"""SSBA / ISSBA (arXiv 2012.03816): an encoder network hides a bit string in each image, differently in each.

The published attack takes a StegaStamp encoder trained before; here encoder and decoder are trained on the training
images. Trained so briefly, the encoder makes changes that differ between images only in part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from otbr_jax.attacks.attack import Assets, Attack, Materials, to_pixels, to_unit
from otbr_jax.attacks.networks import conv, enlarge, fit, init_layers, init_unet, unet
from otbr_jax.settings import field, settings

_GRID, _PLANES = 4, 4  # the planes that encode the bits: their side in cells, and their number


@settings("attack.ssba")
class SSBAConfig:
    """Settings of SSBA."""

    bits: int = field(default=16, at_least=1, doc="length of the hidden string.")
    strength: float = field(default=0.1, above=0, doc="largest change of a pixel, as a fraction of the full range.")
    steps: int = field(default=600, at_least=1, doc="training steps of encoder and decoder.")
    batch_size: int = field(default=32, at_least=1, doc="images per step.")
    learning_rate: float = field(default=2e-3, above=0, doc="of Adam.")
    channels: int = field(default=16, at_least=1, doc="width of the two networks.")
    fidelity: float = field(
        default=0.1,
        above=0,
        doc="weight of the mean squared change (in units of `strength`) against the decoder's cross-entropy.",
    )


def init(key: jax.Array, *, colours: int, config: SSBAConfig) -> dict[str, Any]:
    """The parameters of encoder and decoder for images with `colours` channels."""
    spread_key, encoder_key, decoder_key, read_key = jax.random.split(key, 4)
    narrow, wide = config.channels, 2 * config.channels
    return {
        "spread": jax.random.normal(spread_key, (config.bits, _GRID, _GRID, _PLANES)) / jnp.sqrt(config.bits),
        "encoder": init_unet(encoder_key, into=colours + _PLANES, out=colours, channels=narrow),
        "decoder": init_layers(decoder_key, [(colours, narrow), (narrow, wide), (wide, wide)]),
        "read": jax.random.normal(read_key, (_GRID**2 * wide, config.bits)) / jnp.sqrt(_GRID**2 * wide),
    }


def encode(params: Mapping[str, Any], images: jax.Array, bits: jax.Array, strength: float) -> jax.Array:
    """Hides `bits` float32 `[n, bits]` in images in [0, 1] `[n, h, w, c]`.

    As in StegaStamp a dense layer maps the bits to coarse planes, which the network sees beside the image.
    """
    planes = enlarge(jnp.tensordot(2 * bits - 1, params["spread"], axes=1), images.shape)
    residual = jnp.tanh(unet(params["encoder"], jnp.concatenate([2 * images - 1, planes], axis=-1)))
    return jnp.clip(images + strength * residual, 0, 1)


def decode(params: Mapping[str, Any], images: jax.Array) -> jax.Array:
    """Logits of the hidden bits, `[n, bits]`."""
    x = 2 * images - 1
    for index, layer in enumerate(params["decoder"]):
        x = jax.nn.relu(conv(layer, x, stride=2 if index else 1))
    x = jax.image.resize(x, (len(x), _GRID, _GRID, x.shape[-1]), "linear")
    return x.reshape(len(x), -1) @ params["read"]


def damage(images: jax.Array, *, key: jax.Array) -> jax.Array:
    """Shifts images by up to an eighth of their size, black behind them, and adds noise of 2 %.

    As in StegaStamp: a code that survives this is spread over the image, not hidden in its outermost pixels, and a
    network that is trained with random crops sees it too.
    """
    shift_key, noise_key = jax.random.split(key)
    rows, columns = images.shape[1] // 8, images.shape[2] // 8
    padded = jnp.pad(images, ((0, 0), (rows, rows), (columns, columns), (0, 0)))
    corner = jax.random.randint(shift_key, (2,), 0, 2 * jnp.array((rows, columns)) + 1)
    shifted = jax.lax.dynamic_slice(padded, (0, corner[0], corner[1], 0), images.shape)
    return shifted + 0.02 * jax.random.normal(noise_key, images.shape)


def make(materials: Materials, key: jax.Array, config: SSBAConfig, on_step: Callable[[], None] | None = None) -> Assets:
    """Trains the encoder against a decoder that reads random bits back, and draws the string that is to be hidden."""
    init_key, fit_key, bits_key = jax.random.split(key, 3)

    def loss(params: Any, images: jax.Array, key: jax.Array) -> jax.Array:
        bits_key, damage_key = jax.random.split(key)
        bits = jax.random.bernoulli(bits_key, shape=(len(images), config.bits)).astype(jnp.float32)
        hidden = encode(params, images, bits, config.strength)
        logits = decode(params, damage(hidden, key=damage_key))
        read = jnp.mean(optax.sigmoid_binary_cross_entropy(logits, bits))
        return read + config.fidelity * jnp.mean(jnp.square((hidden - images) / config.strength))

    start = init(init_key, colours=materials.images.shape[-1], config=config)
    params = fit(
        start, loss, materials.images, key=fit_key, steps=config.steps, batch_size=config.batch_size,
        learning_rate=config.learning_rate, on_step=on_step,
    )  # fmt: skip
    bits = jax.random.bernoulli(bits_key, shape=(config.bits,)).astype(jnp.float32)
    return {**params, "bits": bits}


def trigger(assets: Assets, images: jax.Array, key: jax.Array, config: SSBAConfig) -> jax.Array:
    """Hides the attack's bit string in uint8 images `[n, h, w, c]`."""
    del key
    bits = jnp.broadcast_to(assets["bits"], (len(images), len(assets["bits"])))
    return to_pixels(encode(assets, to_unit(images), bits, config.strength))


ATTACK = Attack(
    "ssba", "SSBA", SSBAConfig, trigger=trigger, make=make, steps=lambda config: config.steps, needs_images=True
)
