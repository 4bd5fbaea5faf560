"""Picture files (PNG, JPEG and whatever else Pillow reads) into uint8 arrays."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from otbr_jax.errors import InputError
from otbr_jax.extras import needed

_GREY = ("1", "L", "LA")
_COLOUR = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")
_BLOCK = 256  # a thread's share at a time: handing over single pictures costs as much as decoding small ones


def decode(
    files: Sequence[bytes | pathlib.Path], image_shape: tuple[int, int, int], *, name: Callable[[int], str]
) -> np.ndarray:
    """Decodes pictures, and resizes those of another size: uint8 `[n, h, w, c]`.

    Resizing is bilinear; when shrinking, over all pixels that a new one covers (antialiased). Grey pictures become
    colour by repeating their channel. Transparency is left out.

    Args:
      files: paths, or the bytes of files.
      image_shape: height, width, and 1 or 3 channels.
      name: what messages call a picture, by its place in `files`.

    Raises:
      InputError: names the picture that cannot be read, has more than 8 bits per channel, or is in colour where
        `image_shape` is grey.
    """
    if image_shape[2] not in (1, 3):
        raise InputError(f"model.image_shape: expected 1 or 3 channels, as pictures have, found {image_shape[2]}")
    needed("PIL.Image", what="reading pictures")
    pixels = np.empty((len(files), *image_shape), np.uint8)

    def decode_block(start: int) -> None:
        for place in range(start, min(start + _BLOCK, len(files))):
            pixels[place] = _decode(files[place], image_shape, name, place)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(decode_block, range(0, len(files), _BLOCK)):
            pass  # raises what a thread raised, and drops the blocks that wait
    return pixels


def _decode(
    file: bytes | pathlib.Path, image_shape: tuple[int, int, int], name: Callable[[int], str], place: int
) -> np.ndarray:
    from PIL import Image

    height, width, channels = image_shape
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as opened:
            opened.load()
            mode, picture = opened.mode, opened.convert("L" if channels == 1 else "RGB")
    except Exception as error:  # whatever a damaged file does
        reason = "no known picture format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise InputError(f"{name(place)}: expected a picture, found: {reason}") from None
    if mode not in (*_GREY, *_COLOUR):
        raise InputError(f"{name(place)}: expected 8 bits per channel, found pixels of kind {mode!r}")
    if channels == 1 and mode not in _GREY:
        raise InputError(f"{name(place)}: expected a grey picture as model.image_shape says, found colour ({mode})")
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(image_shape)
