"""How much memory compiled programs need, according to the compiler."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
from typing import Any

import jax

log = logging.getLogger(__name__)


def megabytes(program: Any) -> float | None:
    """The memory of a compiled program (`jax.stages.Compiled`), in 10^6 bytes of one device.

    Arguments, outputs and temporaries, without outputs that reuse the memory of arguments. None if the backend does not
    say.
    """
    try:
        analysis = program.memory_analysis()
        sizes = (analysis.argument_size_in_bytes, analysis.output_size_in_bytes, analysis.temp_size_in_bytes)
        return round((sum(sizes) - analysis.alias_size_in_bytes) / 1e6, 6)
    except (AttributeError, NotImplementedError, RuntimeError):  # XLA's own errors are RuntimeErrors
        return None


def largest(sizes: list[float | None]) -> float | None:
    """The largest of several programs' `megabytes`; None if one is not known."""
    return None if None in sizes else max((size for size in sizes if size is not None), default=None)


def machine() -> float | None:
    """The memory of this machine, or of its first accelerator, in 10^6 bytes; None if it is not known.

    In a container with a limit, that limit.
    """
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        limit = (device.memory_stats() or {}).get("bytes_limit")
        return None if limit is None else limit / 1e6
    try:
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (OSError, ValueError):
        return None
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        limits.append(int(pathlib.Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits) / 1e6


def warn(name: str, needed: float | None, *, lighter: str) -> str | None:
    """Logs and returns one line if a compiled program needs more memory than there is.

    Args:
      name: of its step.
      needed: its `megabytes`.
      lighter: the setting that lowers its memory; may be empty.
    """
    there = machine()
    if needed is None or there is None or needed <= there:
        return None
    what = f"; lower {lighter}" if lighter else ""
    line = f"{name} needs {needed / 1e3:.1f} GB of memory, and there are {there / 1e3:.1f}{what}"
    log.warning(line)
    return line
