"""`otbr_jax.invert`: inverts one trigger of one class in one call."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from otbr_jax.errors import InputError
from otbr_jax.inversion.aims import Aim, Penalised, Smallest, Within
from otbr_jax.inversion.inversion import InvertedTriggers, begin, invert_from, invert_triggers
from otbr_jax.triggers import FAMILIES, PENALISED, Trigger, TriggerFamily
from otbr_jax.types import Batch, Network, Variables, check_finite, in_unit_range

_LEARNING_RATE = 0.1  # of a family without a budget
_NEARLY = 0.9  # a trigger works if its success rate is at least this share of the aim's
_WORKS = 0.85  # success rate of aims that name none
_PART = 200  # images that success rates are measured on at once


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("target", "parameters", "size", "success"),
    meta_fields=("family",),
)
@dataclasses.dataclass(frozen=True)
class InvertedTrigger:
    """An inverted trigger. A pytree.

    Attributes:
      family: its family.
      target: the class that it leads to.
      parameters: the arguments of the family's `apply`.
      size: in the family's unit, `family.unit`.
      success: the success rate: the share of the images of other classes that it turns into the class, in [0, 1].
    """

    family: TriggerFamily
    target: jax.Array
    parameters: Any
    size: jax.Array
    success: jax.Array

    def apply(self, images: jax.Array) -> jax.Array:
        """Images `[n, h, w, c]` with the trigger, in [0, 1]; takes uint8 images in 0..255, or images in [0, 1]."""
        return self.family.apply(in_unit_range(jnp.asarray(images)), self.parameters, self.size)


def invert(
    network: Network,
    variables: Variables,
    images: jax.Array,
    family: str | TriggerFamily = "patch",
    target: int = 0,
    *,
    aim: Aim | None = None,
    steps: int = 100,
    triggers: int = 8,
    starts: int = 128,
    batch_size: int = 32,
    key: jax.Array | None = None,
) -> InvertedTrigger:
    """Inverts a trigger of a class: a change that turns images into it, as small as possible. Not to be jitted.

    Several triggers are inverted from different starts. The result is the smallest of those that work. If none works,
    or the size is fixed, it is the trigger with the highest success rate.

    Args:
      network: the functions of the network, at least two classes.
      variables: its variables.
      images: `[n, h, w, c]`, uint8 in 0..255 or in [0, 1], as the network's `prepare` takes them. Labels are not
        needed: the network's predictions take their place.
      family: the family of triggers: a name, one of `otbr_jax.triggers.FAMILIES` (with the aim `Penalised` one of
        `PENALISED`), or a family of your own.
      target: the class.
      aim: the objective: `Smallest()`, which is the default, `Within(size)` or `Penalised(weight)`.
      steps: of Adam; half as many again at the final size of `Smallest`.
      triggers: number of triggers that are inverted.
      starts: number of random triggers from which their starts are chosen.
      batch_size: images per step, at most.
      key: typed PRNG key; by default `jax.random.key(0)`.

    Returns:
      The trigger, with its size and its success rate on all images.

    Raises:
      InputError: in one line that names the argument.
    """
    aim = Smallest() if aim is None else aim
    kind = _family(family, aim)
    counts = {"steps": steps, "triggers": triggers, "starts": starts, "batch_size": batch_size}
    images = _check(network, variables, images, target, aim, **counts)
    if isinstance(aim, Within):
        aim = Within(float(aim.size))
    # What is compiled once serves all classes and all networks of the kind, whose shapes may be lists.
    height, width, channels = network.image_shape
    network = dataclasses.replace(network, image_shape=(height, width, channels))
    target_class, key = jnp.int32(target), jax.random.key(0) if key is None else key
    trigger, others = _invert(
        variables, images, target_class, key,
        network=network, family=kind, aim=aim, steps=steps, triggers=triggers, starts=starts,
        batch_size=min(batch_size, len(images)),
    )  # fmt: skip
    if not others:
        raise InputError(f"images: expected some that the network does not take for class {target}, found none")
    return InvertedTrigger(kind, target_class, *trigger)


@partial(jax.jit, static_argnames=("network", "family", "aim", "steps", "triggers", "starts", "batch_size"))
def _invert(
    variables: Variables,
    images: jax.Array,
    target: jax.Array,
    key: jax.Array,
    *,
    network: Network,
    family: TriggerFamily,
    aim: Aim,
    steps: int,
    triggers: int,
    starts: int,
    batch_size: int,
) -> tuple[InvertedTriggers, jax.Array]:
    """The best of several triggers, and how many images are of other classes."""
    images = in_unit_range(images)

    def predictions(trigger: Trigger) -> jax.Array:
        def one(image: jax.Array) -> jax.Array:
            return jnp.argmax(network.answer(variables, trigger(image[None]))[0], axis=-1)

        return jax.lax.map(one, images, batch_size=_PART)

    batch = Batch(images, predictions(lambda images: images))
    others, same = batch.labels != target, jnp.full(triggers, target)
    inverted, descent = invert_triggers(
        network,
        variables,
        batch,
        family,
        target,
        aim=aim,
        steps=steps,
        triggers=triggers,
        starts=starts,
        key=key,
        batch_size=batch_size,
    )
    if isinstance(aim, Smallest):
        # Each continues at its final size, since most of its steps were at larger ones.
        fixed = Within(0.0)
        start = begin(descent.point, family, same, aim=fixed)._replace(state=inverted.size)
        inverted, _ = invert_from(
            start, network, variables, batch, family, same, aim=fixed, steps=-(-steps // 2), batch_size=batch_size
        )

    def success_of(trigger: tuple[Any, jax.Array]) -> jax.Array:
        turned = predictions(family.trigger(*trigger)) == target
        return jnp.sum(turned & others) / jnp.maximum(jnp.sum(others), 1)

    success = jax.lax.map(success_of, (inverted.parameters, inverted.size))
    works = success >= _NEARLY * getattr(aim, "success", _WORKS)
    if isinstance(aim, Within):
        works = jnp.zeros(triggers, bool)
    smallest, best_working = jnp.argmin(jnp.where(works, inverted.size, jnp.inf)), jnp.argmax(success)
    best = jnp.where(jnp.any(works), smallest, best_working)
    return jax.tree.map(lambda leaf: leaf[best], inverted._replace(success=success)), jnp.sum(others)


def _family(family: str | TriggerFamily, aim: Aim) -> TriggerFamily:
    """The family, if the aim suits it."""
    if not isinstance(aim, Aim):
        raise InputError(f"aim: expected Smallest(), Within(size) or Penalised(weight), found {aim!r}")
    penalised = isinstance(aim, Penalised)
    if isinstance(family, TriggerFamily):
        if penalised and family.size is None:
            raise InputError(f"aim: expected Smallest() or Within(size) for {family.name!r}, found {aim}")
        if not penalised and family.bounds is None:
            raise InputError(f"aim: expected Penalised(weight) for {family.name!r}, which has no budget, found {aim}")
        return family
    known = PENALISED if penalised else FAMILIES
    if family not in known:
        with_aim = " with Penalised" if penalised else ""
        raise InputError(f"family: expected one of {[*known]}{with_aim} or a TriggerFamily, found {family!r}")
    return PENALISED[family](_LEARNING_RATE) if penalised else FAMILIES[family]


def _check(network: Network, variables: Variables, images: Any, target: int, aim: Aim, **counts: int) -> jax.Array:
    """The images as an array; raises InputError if an argument cannot be used."""
    if not isinstance(network, Network):
        raise InputError(f"network: expected otbr_jax.Network, found {type(network).__name__}")
    if network.num_classes < 2:
        raise InputError(f"network: expected at least 2 classes, found {network.num_classes}")
    if target not in range(network.num_classes):
        raise InputError(f"target: expected a class, 0 to {network.num_classes - 1}, found {target!r}")
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name}: expected at least 1, found {count}")
    if isinstance(aim, Within) and not 0 < aim.size < jnp.inf:
        raise InputError(f"aim.size: expected a finite size above 0, found {aim.size}")
    check_finite(variables)
    expected, shape = (*network.image_shape,), jnp.shape(images)
    if len(shape) != 4 or shape[1:] != expected or not shape[0]:
        raise InputError(f"images: expected shape [n, {', '.join(map(str, expected))}], found {[*shape]}")
    images = jnp.asarray(images)
    if images.dtype == jnp.uint8:
        return images
    low, high = float(jnp.min(images)), float(jnp.max(images))
    if not jnp.issubdtype(images.dtype, jnp.floating) or not 0 <= low <= high <= 1:
        values = f"{images.dtype} in {low:g}..{high:g}"
        raise InputError(f"images: expected uint8 in 0..255 or numbers in [0, 1], found {values}")
    return images
