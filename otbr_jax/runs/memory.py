"""How much memory compiled programs take, as the compiler says."""

from __future__ import annotations

from typing import Any


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
