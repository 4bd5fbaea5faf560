"""What an attack is: a trigger, the arrays that it needs, and how it gets into a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Assets = Mapping[str, Any]
"""The arrays that a trigger consists of (a pattern, a warping field, a generator's weights); empty if it needs none."""

Trigger = Callable[[jax.Array, jax.Array], jax.Array]
"""`(images uint8 [n, h, w, c], key) -> the same images with the trigger, uint8`."""

LABEL_MODES = ("all_to_one", "all_to_all", "clean_label")


class CleanNetwork(NamedTuple):
    """A network without a backdoor, for attacks that are made against one.

    Attributes:
      logits: `images in [0, 1] [n, h, w, c] -> logits [n, classes]`.
      features: the same images to inputs of the classifier, `[n, k]`, those that it weighs most (sum of absolute
        weights) first; k is the number of classes, or of the inputs if there are fewer.
    """

    logits: Callable[[jax.Array], jax.Array]
    features: Callable[[jax.Array], jax.Array]


class Materials(NamedTuple):
    """What an attack may be made from.

    Attributes:
      images: uint8 `[n, h, w, c]`, the training images.
      labels: int32 `[n]`.
      target: the attacker's class.
      clean: a clean network, None unless the attack needs one.
      classes: how many classes there are; 0 if unknown.
    """

    images: jax.Array
    labels: jax.Array
    target: int
    clean: CleanNetwork | None = None
    classes: int = 0


class InTraining(NamedTuple):
    """What an attack does in each training step, for attacks that poison while the network learns.

    Attributes:
      poison: `(assets, images in [0, 1], labels, goals, key) -> (images, labels, loss)`: the poisoned batch before
        augmentation, and a loss of the attack's own. `goals` are the labels that the attacker wants.
      trained: the entries of the assets that are trained together with the network.
      optimizer: their optimizer, from the number of steps; unused if nothing is trained.
    """

    poison: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]
    trained: tuple[str, ...] = ()
    optimizer: Callable[[int], optax.GradientTransformation] = lambda steps: optax.identity()


class Attack(NamedTuple):
    """An attack of the literature. A file of this package with an `Attack` in it is all that one takes.

    `config` is always the attack's own settings.

    Attributes:
      name: as `--config.attack.name` says it; the group of its settings has the same name.
      title: its name in texts.
      Config: its settings, a class of settings with a default for each.
      trigger: `(assets, images uint8, key, config) -> images uint8`.
      make: `(materials, key, config, on_step) -> assets`, deterministic in `key` and traceable; None if the trigger
        needs no arrays. `on_step` is called on the host after each step, or None.
      steps: how often `make` calls `on_step`, from the config.
      labels: how the published attack labels, one of `LABEL_MODES`.
      needs_clean_network: whether `make` reads `materials.clean`, or `poison` its `clean`.
      needs_images: whether `make` reads `materials.images`, more than their shape.
      in_training: `(ratio, config) -> InTraining`; None for attacks that poison the data set before training.
      poison: `(assets, images uint8, labels, key, config, clean) -> images uint8`: what poisoned training images are,
        where they are not just triggered; `labels` are their own, `clean` is a `CleanNetwork` if the attack needs
        one. Unused by attacks that poison while the network learns.
    """

    name: str
    title: str
    Config: type
    trigger: Callable[..., jax.Array]
    make: Callable[..., Assets] | None = None
    steps: Callable[[Any], int] = lambda config: 1
    labels: str = "all_to_one"
    needs_clean_network: bool = False
    needs_images: bool = False
    in_training: Callable[..., InTraining] | None = None
    poison: Callable[..., jax.Array] | None = None


def to_unit(images: jax.Array) -> jax.Array:
    """uint8 images as float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255


def to_pixels(images: jax.Array) -> jax.Array:
    """Images in [0, 1] as uint8, rounded; what lies outside is clipped."""
    return jnp.round(jnp.clip(images, 0, 1) * 255).astype(jnp.uint8)


def replace_some(
    images: jax.Array, labels: jax.Array, changed: jax.Array, goals: jax.Array, role: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Replaces the first images of a batch by changed ones, as `roles` says; those of role 0 are relabelled too.

    Args:
      images: in [0, 1] `[n, h, w, c]`.
      labels: int `[n]`.
      changed: `[m, h, w, c]`, what the first `m` images become unless their role is 2.
      goals: int `[n]`, the labels that the attacker wants.
      role: int `[m]`, from `roles`.
    """
    count = len(role)
    images = images.at[:count].set(jnp.where(role[:, None, None, None] == 2, images[:count], changed))
    return images, labels.at[:count].set(jnp.where(role == 0, goals[:count], labels[:count]))


def goals(labels: jax.Array, *, mode: str, target: int, num_classes: int) -> jax.Array:
    """The classes that the attacker wants triggered images to be predicted as, int32 like `labels`."""
    if mode == "all_to_all":
        return (labels + 1) % num_classes
    return jnp.full_like(labels, target)


def roles(count: int, ratio: float, cross: float, key: jax.Array) -> tuple[jax.Array, int]:
    """Which images of a shuffled batch an attack changes in training: 0 triggered, 1 cross, 2 unchanged.

    A share `ratio` is triggered and a share `cross` gets the attack's counterexamples, at most half of the others: a
    network has to see clean images too. A batch holds no fractions of images, so the numbers are rounded up or down at
    random, with these shares as their mean.

    Returns:
      `(roles int [m], m)`, the first `m` images of the batch; the others are unchanged.
    """
    shares = ratio * count, (ratio + min(cross, (1 - ratio) / 2)) * count
    ends = jnp.floor(jnp.array(shares) + jax.random.uniform(key) * (1 - 1e-6))
    most = min(math.ceil(shares[1] + 1e-6), count)
    return jnp.sum(jnp.arange(most) >= ends[:, None], axis=0), most
