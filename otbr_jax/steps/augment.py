"""Random crops and flips of whole batches, on the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def augment(images: jax.Array, *, key: jax.Array, crop_padding: int, flip: bool) -> jax.Array:
    """Crops and flips each image of `[n, h, w, c]` at random, independently.

    Args:
      images: of any dtype.
      key: typed PRNG key.
      crop_padding: black pixels added on each side before a crop to the original size; 0 for no crop.
      flip: whether half of the images are mirrored left to right.
    """
    crop_key, flip_key = jax.random.split(key)
    count, height, width, channels = images.shape
    if crop_padding:
        padded = jnp.pad(images, ((0, 0), (crop_padding,) * 2, (crop_padding,) * 2, (0, 0)))
        corners = jax.random.randint(crop_key, (count, 2), 0, 2 * crop_padding + 1)

        def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

        images = jax.vmap(crop)(padded, corners)
    if flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(count, 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images
