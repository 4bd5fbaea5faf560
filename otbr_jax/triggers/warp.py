"""A warp: a smooth displacement field bends the image, as WaNet does it (arXiv 2102.10369)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from otbr_jax.triggers.family import TriggerFamily, scale_to

_CELLS = 6  # control points of the field, along each side


def bend(images: jax.Array, control: jax.Array, budget: jax.Array) -> jax.Array:
    """Images `[n, h, w, c]` moved along a field given by control points `[cells, cells, 2]` (rows, columns).

    The field is enlarged by cubic interpolation; pixels are taken from between four (bilinear), edges kept.
    """
    height, width = images.shape[1:3]
    field = scale_to(jax.image.resize(control, (height, width, 2), "cubic"), budget) * (height / 32)
    rows = jnp.clip(jnp.arange(height)[:, None] + field[..., 0], 0, height - 1)
    columns = jnp.clip(jnp.arange(width)[None, :] + field[..., 1], 0, width - 1)
    top, left = (jnp.clip(jnp.floor(place), 0, size - 2) for place, size in ((rows, height), (columns, width)))
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    i, j = top.astype(int), left.astype(int)
    upper = (1 - right) * images[:, i, j] + right * images[:, i, j + 1]
    lower = (1 - right) * images[:, i + 1, j] + right * images[:, i + 1, j + 1]
    return (1 - down) * upper + down * lower


WARP = TriggerFamily(
    name="warp",
    unit="root mean square displacement, in 32nds of the image's height",
    init=lambda key, image_shape: jax.random.normal(key, (_CELLS, _CELLS, 2)),
    apply=bend,
    learning_rate=0.15,
    start=3.0,
    bounds=(0.05, 6.0),
)
