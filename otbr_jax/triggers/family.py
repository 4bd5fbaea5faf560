"""What a family of triggers is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class TriggerFamily(NamedTuple):
    """What a trigger that a defender searches can be; pure functions.

    Attributes:
      name: such as `patch`.
      unit: what `size` says, in words.
      init: `(key, image shape (h, w, c), scale) -> latent`, where a search starts; `scale` is its learning rate.
      parameters: `latent -> parameters`: a search moves the latent freely, whatever bounds the parameters have.
      apply: `(images [n, h, w, c] in [0, 1], parameters) -> images in [0, 1]`.
      cost: `parameters -> scalar`, what a search keeps small.
      size: `parameters -> scalar`, how much of an image the trigger changes, in `unit`.
    """

    name: str
    unit: str
    init: Callable[[jax.Array, tuple[int, int, int], float], Any]
    parameters: Callable[[Any], Any]
    apply: Callable[[jax.Array, Any], jax.Array]
    cost: Callable[[Any], jax.Array]
    size: Callable[[Any], jax.Array]
