"""Several families as one: a trigger is a flat latent and the index of its family.

One compiled program, which holds the network once, then inverts and unlearns triggers of every family; the family is an
argument.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from otbr_jax.triggers.family import TriggerFamily


@dataclasses.dataclass(frozen=True)
class FamilySwitch:
    """Families with a budget, for images of one shape.

    Attributes:
      families: in order; a family's place is its index.
      image_shape: `(h, w, c)`.
    """

    families: tuple[TriggerFamily, ...]
    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.families)

    def __getitem__(self, index: jax.Array | int) -> TriggerFamily:
        """The family of that index, which may be traced; its latents are flat, `[length]`."""
        low, high = (self.numbers("bounds", place)[index] for place in (0, 1))
        return TriggerFamily(
            name=" or ".join(family.name for family in self.families),
            unit="that of each family",
            init=lambda key, image_shape: self._init(index, key),
            apply=lambda images, flat_latent, budget: self._apply(index, flat_latent, budget, images),
            learning_rate=self.numbers("learning_rate")[index],
            start=self.numbers("start")[index],
            bounds=(low, high),
        )

    @property
    def length(self) -> int:
        """Of a flat latent: that of the family with the longest."""
        return max(sum(leaf.size for leaf in jax.tree.leaves(latent)) for latent in map(self._shapes, self.families))

    def numbers(self, name: str, place: int | None = None) -> jax.Array:
        """A number of every family, `[families]`, such as `learning_rate`; `place` of a pair."""
        values = [getattr(family, name) for family in self.families]
        return jnp.array(values if place is None else [pair[place] for pair in values], jnp.float32)

    def latent(self, family: TriggerFamily, flat_latent: jax.Array) -> Any:
        """The latent of a family that a flat one holds."""
        shapes = self._shapes(family)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        flat, unravel = ravel_pytree(zeros)
        return unravel(flat_latent[: flat.size])

    def _init(self, index: jax.Array | int, key: jax.Array) -> jax.Array:
        def start(family: TriggerFamily) -> Callable[[jax.Array], jax.Array]:
            return lambda key: self._flat(family.init(key, self.image_shape))

        return jax.lax.switch(index, [start(family) for family in self.families], key)

    def _apply(self, index: jax.Array | int, flat_latent: jax.Array, budget: jax.Array, images: jax.Array) -> jax.Array:
        def put(family: TriggerFamily) -> Callable[..., jax.Array]:
            return lambda flat, budget, images: family.apply(images, self.latent(family, flat), budget)

        return jax.lax.switch(index, [put(family) for family in self.families], flat_latent, budget, images)

    def _shapes(self, family: TriggerFamily) -> Any:
        return jax.eval_shape(lambda key: family.init(key, self.image_shape), jax.random.key(0))

    def _flat(self, latent: Any) -> jax.Array:
        flat = ravel_pytree(latent)[0]
        return jnp.pad(flat, (0, self.length - flat.size))
