"""Numbers as they are whatever a process was told about them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax


@contextmanager
def default_numerics() -> Iterator[None]:
    """Single precision, and no search for NaN, whatever `JAX_ENABLE_X64` and `JAX_DEBUG_NANS` say.

    Results then are the same everywhere; that something is no number is looked for where it matters.
    """
    with jax.enable_x64(False), jax.debug_nans(False), jax.debug_infs(False):
        yield
