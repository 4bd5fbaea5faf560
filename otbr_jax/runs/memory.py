"""How much memory compiled programs take, as the compiler says."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
from typing import Any

import jax

log = logging.getLogger(__name__)


def megabytes(program: Any) -> float | None:
    """The memory of a program that is compiled (`jax.stages.Compiled`), in 10^6 bytes of one device.

    Arguments, outputs and temporaries, but for outputs that lie where arguments were. None where a backend does not
    say.
    """
    try:
        found = program.memory_analysis()
        parts = (found.argument_size_in_bytes, found.output_size_in_bytes, found.temp_size_in_bytes)
        return round((sum(parts) - found.alias_size_in_bytes) / 1e6, 6)
    except (AttributeError, NotImplementedError, RuntimeError):  # XLA's own errors are RuntimeErrors
        return None


def largest(found: list[float | None]) -> float | None:
    """The largest of what `megabytes` says of several programs; None where one is not known."""
    return None if None in found else max((each for each in found if each is not None), default=None)


def machine() -> float | None:
    """The memory of this machine, or of its first accelerator, in 10^6 bytes; None where nobody says.

    In a container with a limit, that limit.
    """
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        limit = (device.memory_stats() or {}).get("bytes_limit")
        return None if limit is None else limit / 1e6
    try:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (OSError, ValueError):
        return None
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        found.append(int(pathlib.Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found) / 1e6


def warn(name: str, needed: float | None, *, lighter: str) -> str | None:
    """Logs one line, and returns it, if a compiled program will take more memory than there is.

    Args:
      name: of its step.
      needed: what `megabytes` says of it.
      lighter: the setting that it shrinks with; may be empty.
    """
    there = machine()
    if needed is None or there is None or needed <= there:
        return None
    what = f"; lower {lighter}" if lighter else ""
    line = f"{name} needs {needed / 1e3:.1f} GB of memory, and there are {there / 1e3:.1f}{what}"
    log.warning(line)
    return line
