"""Several families as one: a trigger is a row of numbers and the index of its family.

Then one compiled program, with the network in it once, searches and teaches triggers of every family; which one it is
about is a value.
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
class Bank:
    """Families for images of one shape.

    Attributes:
      families: in order; a family's place is its index.
      image_shape: `(h, w, c)`.
    """

    families: tuple[TriggerFamily, ...]
    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.families)

    @property
    def size(self) -> int:
        """The length of a row: that of the longest latent."""
        return max(sum(leaf.size for leaf in jax.tree.leaves(latent)) for latent in map(self._shapes, self.families))

    def numbers(self, name: str, place: int | None = None) -> jax.Array:
        """A number of every family, `[families]`, such as `learning_rate`; `place` of a pair."""
        found = [getattr(family, name) for family in self.families]
        return jnp.array(found if place is None else [pair[place] for pair in found], jnp.float32)

    def init(self, index: jax.Array, key: jax.Array) -> jax.Array:
        """A start of the family of that index, `[size]`; the index may be traced."""

        def start(family: TriggerFamily) -> Callable[[jax.Array], jax.Array]:
            return lambda key: self._row(family.init(key, self.image_shape))

        return jax.lax.switch(index, [start(family) for family in self.families], key)

    def apply(self, index: jax.Array, row: jax.Array, budget: jax.Array, images: jax.Array) -> jax.Array:
        """Images `[n, h, w, c]` in [0, 1] with a trigger of the family of that index, which may be traced."""

        def put(family: TriggerFamily) -> Callable[..., jax.Array]:
            return lambda row, budget, images: family.apply(images, self.latent(family, row), budget)

        return jax.lax.switch(index, [put(family) for family in self.families], row, budget, images)

    def latent(self, family: TriggerFamily, row: jax.Array) -> Any:
        """The latent of a family that a row holds."""
        shapes = self._shapes(family)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        flat, unravel = ravel_pytree(zeros)
        return unravel(row[: flat.size])

    def _shapes(self, family: TriggerFamily) -> Any:
        return jax.eval_shape(lambda key: family.init(key, self.image_shape), jax.random.key(0))

    def _row(self, latent: Any) -> jax.Array:
        flat = ravel_pytree(latent)[0]
        return jnp.pad(flat, (0, self.size - flat.size))
