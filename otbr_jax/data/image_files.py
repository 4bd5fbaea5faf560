"""Image files (PNG, JPEG and whatever else Pillow reads) as uint8 arrays."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from otbr_jax.errors import InputError
from otbr_jax.extras import needed

_GREY = ("1", "L", "LA", "La")
_COLOUR = ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV")
_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_NO_IMAGES = frozenset(".h5 .hdf .bufr .grib .mpg .mpeg .wmf .emf .fits .fit .pdf .eps .ps".split())
_BLOCK = 256  # images per thread at a time, since handing over single images costs as much as decoding small ones


def suffixes() -> frozenset[str]:
    """Endings of files that are read as images, lower case: whatever Pillow reads, but documents and films."""
    image = needed("PIL.Image", what="reading images")
    endings = image.registered_extensions().items()
    return frozenset(ending for ending, kind in endings if kind in image.OPEN) - _NO_IMAGES


def decode(
    files: Sequence[bytes | pathlib.Path], image_shape: tuple[int, int, int], *, name: Callable[[int], str]
) -> np.ndarray:
    """Decodes images, and resizes those of another size: uint8 `[n, h, w, c]`.

    Resizing is bilinear; when shrinking, over all pixels that a new one covers (antialiased). Grey images become
    colour by repeating their channel, and colour images whose channels are equal become grey. 16 bits become 8 by
    dropping the lower ones. Images are rotated as their EXIF orientation says. Transparency is dropped.

    Args:
      files: paths, or the bytes of files.
      image_shape: height, width, and 1 or 3 channels.
      name: what messages call an image, by its place in `files`.

    Raises:
      InputError: names the image that cannot be read, has values out of 16 bits, or is in colour where `image_shape`
        is grey.
    """
    if image_shape[2] not in (1, 3):
        raise InputError(f"model.image_shape: expected 1 or 3 channels, as image files have, found {image_shape[2]}")
    needed("PIL.Image", what="reading images")
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
    from PIL import Image, ImageOps

    height, width, channels = image_shape
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as opened:
            opened.load()
            mode, upright = opened.mode, ImageOps.exif_transpose(opened)
            deep = np.asarray(upright) if mode in _DEEP else None
            image = upright.convert("RGB") if mode in _COLOUR else upright.convert("L")
    except Exception as error:  # whatever a damaged file does
        reason = "no known image format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise InputError(f"{name(place)}: expected an image, found: {reason}") from None
    if mode not in (*_GREY, *_COLOUR, *_DEEP):
        raise InputError(f"{name(place)}: expected 8 or 16 bits per channel, found pixels of kind {mode!r}")
    if deep is not None:
        image = Image.fromarray(_in_8_bits(deep, name=name(place)))
    if channels == 1 and image.mode != "L":
        red, green, blue = (np.asarray(channel) for channel in image.split())
        if np.any(red != green) or np.any(red != blue):
            raise InputError(f"{name(place)}: expected a grey image as model.image_shape says, found colour ({mode})")
        image = image.getchannel(0)
    if channels == 3 and image.mode != "RGB":
        image = image.convert("RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image_shape)


def _in_8_bits(pixels: np.ndarray, *, name: str) -> np.ndarray:
    """Pixels of 16 bits, or of floating point in [0, 1], as uint8."""
    low, high = float(np.min(pixels)), float(np.max(pixels))
    if pixels.dtype.kind == "f" and low >= 0 and high <= 1:
        return np.round(pixels * 255).astype(np.uint8)
    if pixels.dtype.kind in "iu" and low >= 0 and high < 1 << 16:
        return (pixels.astype(np.uint32) >> 8).astype(np.uint8)
    raise InputError(f"{name}: expected values of 16 bits, or floating point in [0, 1], found {low:g}..{high:g}")
