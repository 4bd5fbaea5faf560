"""BadNets (arXiv 1708.06733): a white square in the bottom-right corner."""

from __future__ import annotations

import jax

from otbr_jax.errors import InputError


def badnets(images: jax.Array, *, size: int = 3) -> jax.Array:
    """Puts a white `size` x `size` square into the bottom-right corner of uint8 images `[n, h, w, c]`.

    Raises InputError if the images are not uint8, or the square does not fit.
    """
    if images.dtype != "uint8":
        raise InputError(f"images: expected uint8, found {images.dtype}")
    if not 0 < size <= min(images.shape[1:3]):
        raise InputError(f"attack.size: expected 1 to {min(images.shape[1:3])} pixels, found {size}")
    return images.at[:, -size:, -size:, :].set(255)
