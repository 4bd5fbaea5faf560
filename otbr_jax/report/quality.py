"""How well a trigger hides: PSNR, SSIM and the largest change of a pixel."""

from __future__ import annotations

from typing import NamedTuple

import dm_pix as pix
import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.errors import InputError

_WINDOW = 11  # of SSIM in pixels, with a Gaussian of 1.5, as published (Wang et al. 2004)
_BATCH = 256


class Quality(NamedTuple):
    """How far triggered images are from the clean ones.

    Attributes:
      psnr: peak signal-to-noise ratio in dB, mean over the images that the trigger changed (where nothing changed it is
        infinite); None if it changed none.
      ssim: structural similarity, mean over all images and channels; 1 is identical.
      largest: largest absolute change of a pixel, 0 to 255.
    """

    psnr: float | None
    ssim: float
    largest: int


def image_quality(clean: jax.Array | np.ndarray, triggered: jax.Array | np.ndarray) -> Quality:
    """Compares uint8 images `[n, h, w, c]` with the same images with a trigger.

    Images of any size: for SSIM they are continued by their outermost pixels, so that its window is centred on every
    pixel. Inside the image only, corners would hardly count, where most triggers are.

    Raises InputError if the images are not uint8 of one shape, or there are none.
    """
    check_pairs(clean, triggered)
    pairs = jnp.asarray(clean), jnp.asarray(triggered)
    psnr, ssim, largest = (np.asarray(values, np.float64) for values in _compare(*pairs))
    changed = psnr[largest > 0]  # equal images may differ by float32's rounding
    return Quality(float(changed.mean()) if changed.size else None, float(ssim.mean()), int(largest.max()))


def check_pairs(clean: jax.Array | np.ndarray, triggered: jax.Array | np.ndarray) -> None:
    """Raises InputError unless both are uint8 `[n, h, w, c]` of one shape with at least one image."""
    for name, images in (("clean", clean), ("triggered", triggered)):
        if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
            raise InputError(f"{name}: expected uint8 images [n, h, w, c], found {images.dtype} {tuple(images.shape)}")
    if clean.shape != triggered.shape:
        raise InputError(f"triggered: expected the shape of clean, {clean.shape}, found {triggered.shape}")


@jax.jit
def _compare(clean: jax.Array, triggered: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    side = (_WINDOW // 2, _WINDOW // 2)

    def one(pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        a, b = (image.astype(jnp.float32) / 255 for image in pair)
        wide = (jnp.pad(image, (side, side, (0, 0)), mode="edge") for image in (a, b))
        difference = pair[0].astype(jnp.int32) - pair[1].astype(jnp.int32)
        return pix.psnr(a, b), pix.ssim(*wide, filter_size=_WINDOW), jnp.max(jnp.abs(difference))

    return jax.lax.map(one, (clean, triggered), batch_size=_BATCH)
