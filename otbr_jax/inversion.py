"""Reverse-engineered triggers of a class: the smallest patch, or weakest perturbation, that turns images into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from otbr_jax.convolutions import channels_last
from otbr_jax.settings import field, settings
from otbr_jax.types import Batch, Network, Variables


@settings("inversion")
class InversionConfig:
    """How triggers are searched."""

    steps: int = field(default=100, at_least=1, doc="of Adam, for every class.")
    learning_rate: float = field(
        default=0.1,
        above=0,
        doc="of Adam; mask and pattern are logistic functions of what it moves, a perturbation is what it moves.",
    )
    size: float = field(
        default=10.0,
        above=0,
        doc="weight of the share of the image that the mask covers, or of a perturbation's mean square.",
    )
    images: int = field(default=100, at_least=1, doc="how many images it is searched on, at most.")


class Inverted(NamedTuple):
    """A trigger for every class.

    Attributes:
      mask: `[classes, h, w, 1]` in [0, 1], how much of a pixel is replaced.
      pattern: `[classes, h, w, c]` in [0, 1], by what.
      size: `[classes]`, share of the image that the mask covers, in [0, 1].
      success: `[classes]`, share of the images of other classes that the patch turns into the class.
      strength: `[classes]`, root mean square of the weakest perturbation of the whole image, in units of the images.
    """

    mask: jax.Array
    pattern: jax.Array
    size: jax.Array
    success: jax.Array
    strength: jax.Array


def stamp(images: jax.Array, mask: jax.Array, pattern: jax.Array) -> jax.Array:
    """Images `[n, h, w, c]` with a mask `[h, w, 1]` and a pattern `[h, w, c]` put on, all in [0, 1]."""
    return (1 - mask) * images + mask * pattern


def invert_triggers(
    network: Network,
    variables: Variables,
    images: Batch,
    *,
    key: jax.Array,
    patch: InversionConfig,
    perturbation: InversionConfig,
    prepare: Callable[[jax.Array], jax.Array] = lambda images: images,
    on_class: Callable[[], None] | None = None,
) -> Inverted:
    """Searches a patch and a perturbation for every class of a network; `on_class` is called after each class.

    Takes what `invert_patch` takes, and how patches and how perturbations are searched.
    """

    def search(target: jax.Array) -> Inverted:
        first, second = jax.random.split(jax.random.fold_in(key, target))
        mask, pattern = invert_patch(network, variables, images, target, key=first, config=patch, prepare=prepare)
        success = trigger_success(network, variables, images, mask, pattern, target, prepare=prepare)
        added = invert_perturbation(
            network, variables, images, target, key=second, config=perturbation, prepare=prepare
        )
        if on_class is not None:
            jax.debug.callback(on_class)
        return Inverted(mask, pattern, jnp.mean(mask), success, jnp.sqrt(jnp.mean(added**2)))

    return jax.lax.map(search, jnp.arange(network.num_classes))


def invert_patch(
    network: Network,
    variables: Variables,
    images: Batch,
    target: jax.Array | int,
    *,
    key: jax.Array,
    config: InversionConfig,
    prepare: Callable[[jax.Array], jax.Array] = lambda images: images,
) -> tuple[jax.Array, jax.Array]:
    """Searches the smallest patch that turns images into one class. Pure; jits; touches no data but `images`.

    Args:
      network: the functions of the network.
      variables: its variables.
      images: `[n, h, w, c]` in [0, 1], clean or synthetic, and what the network answers them with, `[n]`; the first
        `config.images` of them are searched on.
      target: the class; may be traced.
      key: typed PRNG key: where the pattern starts.
      config: how triggers are searched.
      prepare: images in [0, 1] -> images as the network takes them.

    Returns:
      The mask `[h, w, 1]` and the pattern `[h, w, c]`, both in [0, 1], see `stamp`.

    Source: after Neural Cleanse (Wang et al., S&P 2019), with a weight of the mask's size that stays as it is.
    """
    height, width, _ = network.image_shape
    few, loss = _loss_of_target(network, variables, images, target, config=config, prepare=prepare)

    def objective(latent: Any) -> jax.Array:
        mask, pattern = (jax.nn.sigmoid(part) for part in latent)
        return loss(stamp(few, mask, pattern)) + config.size * jnp.mean(mask)

    # A mask that is half there everywhere finds the trigger wherever it lies.
    start = (jnp.zeros((height, width, 1)), jax.random.normal(key, network.image_shape))
    mask, pattern = (jax.nn.sigmoid(part) for part in _descend(objective, start, config=config))
    return mask, pattern


def invert_perturbation(
    network: Network,
    variables: Variables,
    images: Batch,
    target: jax.Array | int,
    *,
    key: jax.Array,
    config: InversionConfig,
    prepare: Callable[[jax.Array], jax.Array] = lambda images: images,
) -> jax.Array:
    """Searches one perturbation, `[h, w, c]`, that turns images into a class when it is added. Pure; jits.

    What a mask is to a patch this is to a trigger that is blended over the whole image. Takes what `invert_patch`
    takes; see `perturb`.

    Source: universal adversarial perturbations with a target (Moosavi-Dezfooli et al., CVPR 2017), by gradient.
    """
    few, loss = _loss_of_target(network, variables, images, target, config=config, prepare=prepare)

    def objective(perturbation: jax.Array) -> jax.Array:
        return loss(perturb(few, perturbation)) + config.size * jnp.mean(perturbation**2)

    start = config.learning_rate * jax.random.normal(key, network.image_shape)
    return _descend(objective, start, config=config)


def perturb(images: jax.Array, perturbation: jax.Array) -> jax.Array:
    """Images `[n, h, w, c]` in [0, 1] with a perturbation `[h, w, c]` added, cut off at 0 and 1."""
    return jnp.clip(images + perturbation, 0, 1)


def _loss_of_target(
    network: Network,
    variables: Variables,
    images: Batch,
    target: jax.Array | int,
    *,
    config: InversionConfig,
    prepare: Callable[[jax.Array], jax.Array],
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """The images that are searched on; and, for changed ones, how far those of other classes are from the target."""
    others = (images.labels[: config.images] != target).astype(jnp.float32)

    def loss(changed: jax.Array) -> jax.Array:
        logits = network.apply(variables, prepare(changed)).astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.full(len(logits), target))
        return _mean(losses, others)

    return images.images[: config.images], loss


def _descend(objective: Callable[[Any], jax.Array], start: Any, *, config: InversionConfig) -> Any:
    """Where Adam ends."""
    optimizer = optax.adam(config.learning_rate)
    gradient = channels_last(jax.grad(objective))

    def step(carry: Any, _: None) -> tuple[Any, None]:
        found, moments = carry
        updates, moments = optimizer.update(gradient(found), moments)
        return (optax.apply_updates(found, updates), moments), None

    (found, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), None, length=config.steps)
    return found


def trigger_success(
    network: Network,
    variables: Variables,
    images: Batch,
    mask: jax.Array,
    pattern: jax.Array,
    target: jax.Array | int,
    *,
    prepare: Callable[[jax.Array], jax.Array] = lambda images: images,
) -> jax.Array:
    """Share of the images of other classes that one trigger turns into `target`, in [0, 1]."""
    return changed_success(network, variables, images, stamp(images.images, mask, pattern), target, prepare=prepare)


def changed_success(
    network: Network,
    variables: Variables,
    images: Batch,
    changed: jax.Array,
    target: jax.Array | int,
    *,
    prepare: Callable[[jax.Array], jax.Array] = lambda images: images,
) -> jax.Array:
    """Share of the images of other classes that are taken for `target` when they are `changed`, in [0, 1]."""
    answers = jnp.argmax(network.apply(variables, prepare(changed)), axis=-1)
    return _mean((answers == target).astype(jnp.float32), (images.labels != target).astype(jnp.float32))


def _mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1.0)
