"""Procedural images: made on the device from a key, without any data set and without a trigger.

Dead leaves (overlapping shaded shapes with power-law sizes; Lee, Mumford, Huang, IJCV 2001) and coloured noise with a
1/f^a spectrum have the statistics of natural images without their content (Baradad et al., NeurIPS 2021). Their labels
are the network's own predictions.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.types import Batch

_LEAVES = 60
_SMALLEST, _LARGEST, _POWER = 0.04, 0.5, 1.5  # radii, as shares of the image's side


class PredictedImages(NamedTuple):
    """Images in [0, 1] with the suspicious network's predictions as labels, and how they were made."""

    batch: Batch
    info: Any = None


def procedural(key: jax.Array, *, images: int, image_shape: tuple[int, int, int]) -> jax.Array:
    """Images `[images, h, w, c]` in [0, 1], half dead leaves and half noise, in random order. Pure; jits.

    Args:
      key: typed PRNG key.
      images: number of images.
      image_shape: `(h, w, c)`, any size and number of channels.
    """
    keys = jax.random.split(key, images + 1)
    half = images // 2
    leaves = jax.lax.map(partial(dead_leaves, image_shape=image_shape), keys[:half], batch_size=64)
    noise = jax.lax.map(partial(coloured_noise, image_shape=image_shape), keys[half:images], batch_size=64)
    return jnp.concatenate([leaves, noise])[jax.random.permutation(keys[images], images)]


def dead_leaves(key: jax.Array, *, image_shape: tuple[int, int, int]) -> jax.Array:
    """One image `[h, w, c]` of 5 to 60 ellipses, boxes and diamonds of 3 to 8 colours, shaded, one over another."""
    height, width, channels = image_shape
    # Two draws in all: each call of a generator is compiled anew.
    even_key, normal_key = jax.random.split(key)
    once, *each = jnp.split(jax.random.uniform(even_key, (7 * _LEAVES + 2 + 8 * channels,)), [2 + 8 * channels], axis=0)
    share, y, x, angle, aspect, kind, which = each[0].reshape(7, _LEAVES)
    palette = once[2:].reshape(8, channels)
    used, count = 3 + jnp.floor(6 * once[0]), 5 + jnp.floor((_LEAVES - 4) * once[1])
    normal = jax.random.normal(normal_key, (_LEAVES, channels + 2))
    radius = (_SMALLEST**-_POWER * (1 - share) + _LARGEST**-_POWER * share) ** (-1 / _POWER)
    angle, aspect = jnp.pi * angle, jnp.exp(1.4 * aspect - 0.7)
    kind, which = jnp.floor(3 * kind).astype(int), jnp.floor(used * which).astype(int)
    colour, shade = palette[which] + 0.03 * normal[:, :channels], 0.35 * normal[:, channels:]
    rows, columns = (jnp.arange(height)[:, None] + 0.5) / height, (jnp.arange(width)[None, :] + 0.5) / width
    pixels = min(height, width)

    def put(index: int, image: jax.Array) -> jax.Array:
        down, right = rows - y[index], columns - x[index]
        cosine, sine = jnp.cos(angle[index]), jnp.sin(angle[index])
        along = (right * cosine + down * sine) / (radius[index] * aspect[index])
        across = (down * cosine - right * sine) * aspect[index] / radius[index]
        distances = jnp.stack(
            [along**2 + across**2, jnp.maximum(jnp.abs(along), jnp.abs(across)), jnp.abs(along) + jnp.abs(across)]
        )
        cover = jnp.clip((1 - distances[kind[index]]) * radius[index] * pixels * 0.7 + 0.5, 0, 1) * (index < count)
        light = 1 + shade[index, 0] * along + shade[index, 1] * across
        return image * (1 - cover[..., None]) + cover[..., None] * colour[index] * light[..., None]

    return jnp.clip(jax.lax.fori_loop(0, _LEAVES, put, jnp.broadcast_to(palette[0], image_shape)), 0, 1)


def coloured_noise(key: jax.Array, *, image_shape: tuple[int, int, int]) -> jax.Array:
    """One image `[h, w, c]` of noise whose spectrum falls as 1/f^a, a in [0.8, 2], with correlated channels."""
    height, width, channels = image_shape
    even_key, normal_key = jax.random.split(key)
    even = jax.random.uniform(even_key, (2 + channels,))
    normal = jax.random.normal(normal_key, (2 * height * width * channels + channels**2,))
    power, contrast, level = 0.8 + 1.2 * even[0], 0.12 + 0.18 * even[1], 0.25 + 0.5 * even[2:]
    real, imaginary = normal[channels**2 :].reshape(2, height, width, channels)
    mix = 0.5 * normal[: channels**2].reshape(channels, channels) + 1.5 / channels
    frequency = jnp.sqrt(jnp.fft.fftfreq(height)[:, None] ** 2 + jnp.fft.fftfreq(width)[None, :] ** 2)
    spectrum = (real + 1j * imaginary) * (jnp.where(frequency > 0, frequency, 1.0) ** -power)[..., None]
    noise = jnp.real(jnp.fft.ifft2(spectrum.at[0, 0].set(0), axes=(0, 1)))
    noise = noise / jnp.sqrt(jnp.mean(noise**2, axis=(0, 1)) + 1e-12)
    noise = noise @ mix
    noise = noise / jnp.sqrt(jnp.mean(noise**2) + 1e-12)
    return jnp.clip(level + contrast * noise, 0, 1)


def balanced_sample(predictions: jax.Array, *, classes: int, images: int, key: jax.Array) -> jax.Array:
    """Indices of images, `[images]`, so that each predicted class is drawn about equally often.

    Drawn with replacement, in random order, so that every batch is balanced, too. With a blended backdoor nearly all
    images may be predicted as its target, and trigger inversion needs images of other classes. A rarely predicted class
    is drawn less often, so that no single image represents it.

    Args:
      predictions: int `[n]`, the network's prediction for each image.
      classes: number of classes.
      images: number of indices.
      key: typed PRNG key.
    """
    counts = jnp.bincount(predictions, length=classes)
    weight = 1 / jnp.maximum(counts, images / (2 * classes))
    return jax.random.categorical(key, jnp.log(weight[predictions]), shape=(images,))
