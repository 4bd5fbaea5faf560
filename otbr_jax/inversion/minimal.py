"""The minimal triggers of every class: the smallest budget at which a trigger of a family turns images into it.

A backdoor is a short cut to the attacker's class, so that some family reaches it at a fraction of what other classes
take. One compiled program inverts triggers of every class at once, family after family.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.inversion.aims import Smallest
from otbr_jax.inversion.descent import Descent
from otbr_jax.inversion.inversion import InvertedTriggers, begin, invert_from
from otbr_jax.inversion.starts import map_in_chunks, random_starts, score_starts, step_batch
from otbr_jax.numerics.flops import flops_of
from otbr_jax.settings import field, settings, wrong
from otbr_jax.triggers import FamilySwitch
from otbr_jax.types import Batch, Network, Variables


@settings("inversion")
class InversionConfig:
    """How triggers are searched within budgets."""

    steps: int = field(default=24, at_least=1, doc="of Adam, for every class and family.")
    finalists: int = field(
        default=5, at_least=1, doc="classes, those nearest to being reached, that are searched for as many steps more."
    )
    images: int = field(default=16, at_least=1, doc="pictures in a step.")
    starts: int = field(default=128, at_least=1, doc="random triggers of which each class's best is where Adam starts.")
    classes: int = field(
        default=20,
        at_least=1,
        doc="that are searched at once, at most; fewer where a network's layers put out more than 2 GB for them.",
    )
    among: int = field(
        default=0,
        at_least=0,
        doc="search no more than so many classes, those that a screening finds most likely to be an attacker's; 0 for "
        "all.",
    )

    def check(self) -> None:
        """One or two classes have no majority to stand out of."""
        if 0 < self.among < 3:
            raise wrong(self, "among", "0 for all classes, or at least 3 to compare")


IMAGES = "inversion.images"
"""The setting that devices of a mapped axis share, for errors."""
_MOST_BYTES = 2e9  # that layers put out for the classes that are inverted at once; gradients take about twice that


class ScreenedClasses(NamedTuple):
    """Which classes are inverted, and from where.

    Attributes:
      classes: `[searched]`, ascending; by default all.
      start: `[families, searched]`, which of a family's random triggers comes nearest to each of them.
    """

    classes: jax.Array
    start: jax.Array


class MinimalTriggers(NamedTuple):
    """Minimal triggers of every family for every class that was searched.

    Attributes:
      flat_latent: `[families, searched, length]`, see `FamilySwitch`.
      size: `[families, searched]`, the smallest budget at which 85 % of the images of other classes were turned, in the
        family's unit; where they never were, the budget that an inversion had come to.
      classes: `[searched]`, which they are.
    """

    flat_latent: jax.Array
    size: jax.Array
    classes: jax.Array


def minimal_triggers(
    network: Network,
    variables: Variables,
    images: Batch,
    switch: FamilySwitch,
    screened: ScreenedClasses,
    *,
    key: jax.Array,
    config: InversionConfig,
    axis_name: str | None = None,
    on_step: Callable[[], None] | None = None,
) -> MinimalTriggers:
    """Inverts a minimal trigger of every family for every screened class. Pure; jits.

    The classes that are nearest to being reached are the finalists: their inversions go on.

    Guarantee: touches no data but `images`.

    Args:
      network: the functions of the network.
      variables: its variables.
      images: `[n, h, w, c]` in [0, 1], and what the network answers them with, `[n]`.
      switch: the families.
      screened: of `otbr_jax.steps.screen.screen` with the same key and configuration.
      key: typed PRNG key: where inversions start.
      config: how.
      axis_name: mapped axis whose devices share each step's images.
      on_step: called on the host after each step, once for every class; None traces no callback.
    """
    count, aim = len(screened.classes), Smallest()
    finalists, size = min(config.finalists, count), min(classes_at_once(network, variables, config), count)
    # The last chunk repeats classes to be as long.
    chunks = jnp.arange(-(-count // size) * size).reshape(-1, size)

    def one_family(of: tuple[jax.Array, jax.Array]) -> MinimalTriggers:
        index, start = of
        family, starts = switch[index], family_starts(switch, index, key, config)

        def invert(targets: jax.Array, begun: Any, first: int) -> tuple[InvertedTriggers, Descent]:
            return invert_from(
                begun, network, variables, images, family, targets,
                aim=aim, steps=config.steps, batch_size=config.images, first=first,
                axis_name=axis_name, name=IMAGES, on_step=on_step and partial(_times, on_step, len(targets)),
            )  # fmt: skip

        def chunk(nearest: Any, numbers: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            """A chunk's triggers; where descents stand is kept of the nearest classes alone."""
            places = numbers % count
            found, descent = invert(screened.classes[places], starts[start[places]], 0)
            far = jnp.where(numbers < count, found.size, jnp.inf)
            both = jax.tree.map(lambda old, new: jnp.concatenate([old, new]), nearest, (places, far, descent))
            order = jnp.lexsort((both[2].state.loss, both[1]))[:finalists]
            return jax.tree.map(lambda leaf: leaf[order], both), (found.parameters, found.size)

        zero = jnp.zeros(finalists, jnp.int32)
        nobody = zero, jnp.full(finalists, jnp.inf), begin(jnp.zeros((finalists, switch.length)), family, zero, aim=aim)
        (places, _, begun), found = jax.lax.scan(chunk, nobody, chunks)
        latent, least = found[0].reshape(-1, switch.length)[:count], found[1].reshape(-1)[:count]
        second, _ = map_in_chunks(partial(invert, first=config.steps), size, screened.classes[places], begun)
        return MinimalTriggers(
            latent.at[places].set(second.parameters), least.at[places].set(second.size), screened.classes
        )

    found = jax.lax.map(one_family, (jnp.arange(len(switch)), screened.start))
    return found._replace(classes=screened.classes)


def classes_at_once(network: Network, variables: Variables, config: InversionConfig) -> int:
    """How many classes are inverted at once: `config.classes`, or as many as memory is for."""
    each = config.images * flops_of(network, variables).bytes
    return int(max(1, min(config.classes, _MOST_BYTES // max(each, 1))))


def family_starts(switch: FamilySwitch, index: jax.Array, key: jax.Array, config: InversionConfig) -> jax.Array:
    """A family's random triggers, `[starts, length]`."""
    key = jax.random.fold_in(key, index)
    return random_starts(switch[index], switch.image_shape, count=config.starts, key=key)


def score_family_starts(
    network: Network,
    variables: Variables,
    images: Batch,
    switch: FamilySwitch,
    index: jax.Array,
    *,
    key: jax.Array,
    config: InversionConfig,
    axis_name: str | None = None,
) -> jax.Array:
    """How near each of a family's random triggers comes to each class, `[starts, classes]`; see `score_starts`."""
    family, starts = switch[index], family_starts(switch, index, key, config)
    few = step_batch(images, 0, config.images, axis_name, name=IMAGES)
    return score_starts(
        network, variables, few, family, starts, budget=jnp.asarray(family.start), axis_name=axis_name
    )  # fmt: skip


def _times(on_step: Callable[[], None], count: int) -> None:
    for _ in range(count):
        on_step()
