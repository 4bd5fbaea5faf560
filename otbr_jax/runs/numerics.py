"""The numerics of every run, whatever JAX's environment variables say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax


@contextmanager
def default_numerics() -> Iterator[None]:
    """Single precision and no NaN checks, whatever `JAX_ENABLE_X64` and `JAX_DEBUG_NANS` say.

    So results are the same everywhere. NaNs are checked where they matter.
    """
    with jax.enable_x64(False), jax.debug_nans(False), jax.debug_infs(False):
        yield
