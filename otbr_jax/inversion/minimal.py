"""Minimal triggers: for every class and family, the smallest budget at which a trigger turns images into the class.

The target of a backdoor needs a trigger much smaller than those of other classes, in at least one family. One compiled
program inverts triggers of all classes at once, family after family.
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
    """How triggers are inverted within budgets."""

    steps: int = field(default=24, at_least=1, doc="of Adam, for every class and family.")
    finalists: int = field(
        default=5,
        at_least=1,
        doc="number of classes with the smallest triggers, whose inversions run for as many steps again.",
    )
    images: int = field(default=16, at_least=1, doc="per step.")
    starts: int = field(
        default=128, at_least=1, doc="number of random triggers; inversions of a class start from the best of them."
    )
    classes: int = field(
        default=20,
        at_least=1,
        doc="that are inverted at once, at most; fewer where the activations for them exceed 2 GB.",
    )
    among: int = field(
        default=0,
        at_least=0,
        doc="number of classes that are inverted, those that screening finds most suspicious; 0 for all.",
    )

    def check(self) -> None:
        """One or two classes have no majority to be compared with."""
        if 0 < self.among < 3:
            raise wrong(self, "among", "0 for all classes, or at least 3 to compare")


IMAGES = "inversion.images"
"""The setting of the batch that devices of a mapped axis share, for errors."""
_MOST_BYTES = 2e9  # of activations for the classes that are inverted at once; gradients take about twice that


class ScreenedClasses(NamedTuple):
    """The classes that are inverted, and the start for each.

    Attributes:
      classes: `[screened]`, ascending; by default all.
      start: `[families, screened]`, the index of the random trigger of a family that makes each class most likely.
    """

    classes: jax.Array
    start: jax.Array


class MinimalTriggers(NamedTuple):
    """Minimal triggers of every family for every screened class.

    Attributes:
      flat_latent: `[families, screened, length]`, see `FamilySwitch`.
      size: `[families, screened]`, the smallest budget with a success rate of 85 %, in the family's unit; the last
        budget where none had it.
      classes: `[screened]`, the classes.
    """

    flat_latent: jax.Array
    size: jax.Array
    classes: jax.Array


def minimal_triggers(
    network: Network,
    variables: Variables,
    batch: Batch,
    switch: FamilySwitch,
    screened: ScreenedClasses,
    *,
    key: jax.Array,
    config: InversionConfig,
    axis_name: str | None = None,
    on_step: Callable[[], None] | None = None,
) -> MinimalTriggers:
    """Inverts a minimal trigger of every family for every screened class. Pure; jits.

    The classes with the smallest triggers are the finalists, whose inversions continue.

    Guarantee: touches no data but `batch`.

    Args:
      network: the functions of the network.
      variables: its variables.
      batch: images `[n, h, w, c]` in [0, 1] and the network's predictions for them, `[n]`.
      switch: the families.
      screened: of `otbr_jax.steps.screen.screen` with the same key and configuration.
      key: typed PRNG key of the starts.
      config: the settings.
      axis_name: mapped axis whose devices share each step's images.
      on_step: called on the host after each step, once for every class; None traces no callback.
    """
    count, aim = len(screened.classes), Smallest()
    finalists, size = min(config.finalists, count), min(classes_at_once(network, variables, config), count)
    # The last chunk is padded with repeated classes.
    chunks = jnp.arange(-(-count // size) * size).reshape(-1, size)

    def one_family(entry: tuple[jax.Array, jax.Array]) -> MinimalTriggers:
        index, start = entry
        family, starts = switch[index], family_starts(switch, index, key, config)

        def invert(targets: jax.Array, first_points: Any, first: int) -> tuple[InvertedTriggers, Descent]:
            return invert_from(
                first_points, network, variables, batch, family, targets,
                aim=aim, steps=config.steps, batch_size=config.images, first=first,
                axis_name=axis_name, name=IMAGES, on_step=on_step and partial(_repeat, on_step, len(targets)),
            )  # fmt: skip

        def invert_chunk(best: Any, numbers: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            """A chunk's triggers; descents are kept for the classes with the smallest triggers alone."""
            places = numbers % count
            triggers, descent = invert(screened.classes[places], starts[start[places]], 0)
            sizes = jnp.where(numbers < count, triggers.size, jnp.inf)
            both = jax.tree.map(lambda old, new: jnp.concatenate([old, new]), best, (places, sizes, descent))
            order = jnp.lexsort((both[2].state.loss, both[1]))[:finalists]
            return jax.tree.map(lambda leaf: leaf[order], both), (triggers.parameters, triggers.size)

        zero = jnp.zeros(finalists, jnp.int32)
        nobody = zero, jnp.full(finalists, jnp.inf), begin(jnp.zeros((finalists, switch.length)), family, zero, aim=aim)
        (places, _, descents), (latents, sizes) = jax.lax.scan(invert_chunk, nobody, chunks)
        latents, sizes = latents.reshape(-1, switch.length)[:count], sizes.reshape(-1)[:count]
        second, _ = map_in_chunks(partial(invert, first=config.steps), size, screened.classes[places], descents)
        return MinimalTriggers(
            latents.at[places].set(second.parameters), sizes.at[places].set(second.size), screened.classes
        )

    minimal = jax.lax.map(one_family, (jnp.arange(len(switch)), screened.start))
    return minimal._replace(classes=screened.classes)


def classes_at_once(network: Network, variables: Variables, config: InversionConfig) -> int:
    """How many classes are inverted at once: `config.classes`, or as many as fit into memory."""
    each = config.images * flops_of(network, variables).bytes
    return int(max(1, min(config.classes, _MOST_BYTES // max(each, 1))))


def family_starts(switch: FamilySwitch, index: jax.Array, key: jax.Array, config: InversionConfig) -> jax.Array:
    """A family's random triggers, `[starts, length]`."""
    key = jax.random.fold_in(key, index)
    return random_starts(switch[index], switch.image_shape, count=config.starts, key=key)


def score_family_starts(
    network: Network,
    variables: Variables,
    batch: Batch,
    switch: FamilySwitch,
    index: jax.Array,
    *,
    key: jax.Array,
    config: InversionConfig,
    axis_name: str | None = None,
) -> jax.Array:
    """Scores of a family's random triggers for each class, `[starts, classes]`; see `score_starts`."""
    family, starts = switch[index], family_starts(switch, index, key, config)
    few = step_batch(batch, 0, config.images, axis_name, name=IMAGES)
    return score_starts(
        network, variables, few, family, starts, budget=jnp.asarray(family.start), axis_name=axis_name
    )  # fmt: skip


def _repeat(on_step: Callable[[], None], count: int) -> None:
    for _ in range(count):
        on_step()
