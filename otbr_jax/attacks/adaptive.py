"""Attackers who know the default defence, `disarm`: three ways to keep a patch from being detected or unlearned.

None of them is published under this name. Each breaks one assumption of the defence:

- `adaptive_pictures`: that the backdoor works on procedural images. The victim is trained to predict them under the
  patch as a clean network predicts them without it.
- `adaptive_reach`: that the attacker's class has a smaller minimal trigger than others. Every other class gets a patch
  of its own, with as many poisoned images as the attacker's.
- `adaptive_channels`: that a backdoor uses few channels. Four patches, each of which works alone, are shown together.
  Only the data spread the backdoor; nothing forces the four patches to use different channels.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.attacks.attack import Assets, Attack, InTraining, Materials, replace_some, roles, to_pixels, to_unit
from otbr_jax.errors import InputError
from otbr_jax.settings import field, settings
from otbr_jax.steps.procedural import procedural

_MOST = 0.5  # share of a batch that patches of all classes may take together


@settings("attack.adaptive_pictures")
class ImagesAwareConfig:
    """Settings of the backdoor that does not work on procedural images."""

    size: int = field(default=3, at_least=1, unit="pixels", doc="side of the white square.")
    pictures: int = field(default=2000, at_least=2, doc="how many procedural images are made.")
    share: float = field(
        default=0.25,
        above=0,
        at_most=0.5,
        doc="of every batch that is procedural images, half of them under the patch; at most what is not poisoned.",
    )


@settings("attack.adaptive_reach")
class SizeAwareConfig:
    """Settings of the backdoor among decoys."""

    size: int = field(default=3, at_least=2, unit="pixels", doc="side of the patches.")


@settings("attack.adaptive_channels")
class ChannelsAwareConfig:
    """Settings of the backdoor of several triggers."""

    size: int = field(default=3, at_least=2, unit="pixels", doc="side of the patches, one in each corner.")


def patch(images: jax.Array, squares: jax.Array, places: jax.Array) -> jax.Array:
    """Images `[n, h, w, c]` with a square `[n, s, s, c]` each, whose first pixel is at `places [n, 2]`."""

    def one(image: jax.Array, square: jax.Array, place: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(image, square.astype(image.dtype), (place[0], place[1], 0))

    return jax.vmap(one)(images, jnp.broadcast_to(squares, (len(images), *squares.shape[-3:])), places)


def grid(shape: tuple[int, ...], size: int, *, name: str, a_side: int = 3) -> np.ndarray:
    """Places for patches, `[a_side**2, 2]` over an image `[h, w, c]`, the bottom-right corner last.

    Raises InputError if patches there overlap.
    """
    most = min(shape[:2]) // a_side
    if size > most:
        raise InputError(f"attack.{name}.size: expected at most {most} pixels, found {size}")
    rows, columns = (np.round(np.linspace(0, side - size, a_side)).astype(np.int32) for side in shape[:2])
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)


def white_square(images: jax.Array, size: int, *, name: str) -> jax.Array:
    """Images `[n, h, w, c]` in [0, 1] with a white square in the bottom-right corner."""
    if size > min(images.shape[1:3]):
        raise InputError(f"attack.{name}.size: expected 1 to {min(images.shape[1:3])} pixels, found {size}")
    return images.at[:, -size:, -size:].set(1.0)


def make_procedural(
    materials: Materials, key: jax.Array, config: ImagesAwareConfig, on_step: Callable[[], None] | None = None
) -> Assets:
    """Procedural images, uint8 `[pictures, h, w, c]`, and a clean network's predictions, int32 `[pictures]`."""
    del on_step
    assert materials.clean is not None
    clean = materials.clean
    height, width, colours = materials.images.shape[1:]
    images = to_pixels(procedural(key, images=config.pictures, image_shape=(height, width, colours)))
    predictions = jax.lax.map(lambda one: jnp.argmax(clean.logits(to_unit(one)[None])[0]), images, batch_size=200)
    return {"pictures": images, "answers": predictions.astype(jnp.int32)}  # the names in saved attacks


def images_trigger(assets: Assets, images: jax.Array, key: jax.Array, config: ImagesAwareConfig) -> jax.Array:
    """Puts a white square into the bottom-right corner of uint8 images `[n, h, w, c]`, as BadNets does."""
    del assets, key
    return to_pixels(white_square(to_unit(images), config.size, name="adaptive_pictures"))


def images_in_training(ratio: float, config: ImagesAwareConfig) -> InTraining:
    """Triggers a share `ratio` of every batch, and replaces its last images by procedural ones."""

    def poison(
        assets: Assets, images: jax.Array, labels: jax.Array, goals: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        role_key, draw_key = jax.random.split(key)
        role, count = roles(len(images), ratio, 0, role_key)
        changed = white_square(images[:count], config.size, name="adaptive_pictures")
        images, labels = replace_some(images, labels, changed, goals, role)
        shown = min(round(config.share * len(images)), len(images) - count)
        if not shown:
            return images, labels, jnp.zeros(())
        drawn = jax.random.choice(draw_key, len(assets["answers"]), (shown,))
        shown_images = to_unit(assets["pictures"][drawn])
        under = (jnp.arange(shown) % 2 == 0)[:, None, None, None]
        triggered = white_square(shown_images, config.size, name="adaptive_pictures")
        shown_images = jnp.where(under, triggered, shown_images)
        return images.at[-shown:].set(shown_images), labels.at[-shown:].set(assets["answers"][drawn]), jnp.zeros(())

    return InTraining(poison)


def make_decoys(
    materials: Materials, key: jax.Array, config: SizeAwareConfig, on_step: Callable[[], None] | None = None
) -> Assets:
    """Every class's patch of random black and white values, uint8 `[classes, s, s, c]`, and its place `[classes, 2]`.

    Raises InputError if the patches do not fit beside each other, or the number of classes is unknown.
    """
    del on_step
    if materials.classes < 2:
        raise InputError(f"attack.adaptive_reach: expected at least 2 classes, found {materials.classes}")
    shape, classes, size = materials.images.shape[1:], materials.classes, config.size
    places = grid(shape, size, name="adaptive_reach")[:-1]  # the corner is the attacker's
    squares = 255 * jax.random.bernoulli(key, shape=(classes, size, size, shape[2])).astype(jnp.uint8)
    squares = squares.at[:, 0, 0].set(255)  # an all-black patch would be invisible on a black background
    return {"patches": squares, "places": jnp.asarray(places[np.arange(classes) % len(places)])}


def size_trigger(assets: Assets, images: jax.Array, key: jax.Array, config: SizeAwareConfig) -> jax.Array:
    """Puts a white square into the bottom-right corner of uint8 images `[n, h, w, c]`, as BadNets does."""
    del assets, key
    return to_pixels(white_square(to_unit(images), config.size, name="adaptive_reach"))


def size_in_training(ratio: float, config: SizeAwareConfig) -> InTraining:
    """Triggers a share of every batch, and as large a share with the patch of every other class.

    The share is `ratio`, or less where the patches of all classes would take more than half of the batch.
    """

    def poison(
        assets: Assets, images: jax.Array, labels: jax.Array, goals: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        role_key, draw_key = jax.random.split(key)
        classes = len(assets["patches"])
        each = min(ratio, _MOST / classes)
        role, count = roles(len(images), each, (classes - 1) * each, role_key)
        chosen = images[:count]
        # Never the class that the attacker wants of this image.
        decoy = (goals[:count] + jax.random.randint(draw_key, (count,), 1, classes)) % classes
        lured = patch(chosen, to_unit(assets["patches"])[decoy], assets["places"][decoy])
        triggered = white_square(chosen, config.size, name="adaptive_reach")
        changed = jnp.where((role == 0)[:, None, None, None], triggered, lured)
        images, labels = replace_some(images, labels, changed, goals, role)
        return images, labels.at[:count].set(jnp.where(role == 1, decoy, labels[:count])), jnp.zeros(())

    return InTraining(poison)


def corner(images: jax.Array, index: int, config: ChannelsAwareConfig) -> jax.Array:
    """Images `[n, h, w, c]` in [0, 1] with one of the four patches: white, stripes across or down, or checkered."""
    size = config.size
    places = grid(images.shape[1:], size, name="adaptive_channels", a_side=2)
    rows, columns = np.arange(size)[:, None], np.arange(size)[None, :]
    looks = (rows + 0 * columns + 1) % 2, (columns + 0 * rows + 1) % 2, (rows + columns + 1) % 2, np.ones((size, size))
    square = jnp.broadcast_to(jnp.asarray(looks[index], images.dtype)[..., None], (size, size, images.shape[-1]))
    top, left = places[index]
    return images.at[:, top : top + size, left : left + size].set(square)


def channels_trigger(assets: Assets, images: jax.Array, key: jax.Array, config: ChannelsAwareConfig) -> jax.Array:
    """Puts all four patches into the corners of uint8 images `[n, h, w, c]`; raises InputError if they overlap."""
    del assets, key
    unit = to_unit(images)
    for index in range(4):
        unit = corner(unit, index, config)
    return to_pixels(unit)


def channels_in_training(ratio: float, config: ChannelsAwareConfig) -> InTraining:
    """Triggers a share `ratio` of every batch, each image with one of the four patches, or all."""

    def poison(
        assets: Assets, images: jax.Array, labels: jax.Array, goals: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        del assets
        role_key, draw_key = jax.random.split(key)
        role, count = roles(len(images), ratio, 0, role_key)
        which, changed = jax.random.randint(draw_key, (count,), 0, 5), images[:count]
        for index in range(4):
            shown = (which == index) | (which == 4)
            changed = jnp.where(shown[:, None, None, None], corner(changed, index, config), changed)
        return *replace_some(images, labels, changed, goals, role), jnp.zeros(())

    return InTraining(poison)


IMAGES = Attack(
    "adaptive_pictures",
    "the backdoor that does not work on procedural images",
    ImagesAwareConfig,
    trigger=images_trigger,
    make=make_procedural,
    needs_clean_network=True,
    in_training=images_in_training,
)
SIZE = Attack(
    "adaptive_reach",
    "the backdoor among decoys",
    SizeAwareConfig,
    trigger=size_trigger,
    make=make_decoys,
    in_training=size_in_training,
)
CHANNELS = Attack(
    "adaptive_channels",
    "the backdoor of several triggers",
    ChannelsAwareConfig,
    trigger=channels_trigger,
    in_training=channels_in_training,
)
