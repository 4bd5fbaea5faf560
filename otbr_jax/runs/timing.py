"""How a stage's time is spent: compiling, running, moving arrays, the disk; and traces for a profiler."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import jax

PARTS = ("compile", "run", "transfer", "disk")
"""What a stage's seconds are spent on.

`compile` is tracing, lowering and compiling, or reading a compiled program; `transfer` moves arrays to the devices and
back; `disk` writes or reads the stage. `run` is the rest, with the saves of a long stage.
"""


@contextmanager
def compiling() -> Iterator[Callable[[], float]]:
    """Listens to JAX while the block runs; yields a function that returns the seconds of compilation so far."""
    intervals: list[tuple[float, float]] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            now = time.perf_counter()
            intervals.append((now - duration_secs, now))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield lambda: union_length(intervals)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def union_length(intervals: Sequence[tuple[float, float]]) -> float:
    """The length of a union of intervals `(begin, end)`: JAX may trace inside a trace, which counts once."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def split(seconds: float, *, compiling: float, transfer: float) -> dict[str, float]:
    """The parts of a stage's seconds without the disk; they add up to `seconds`."""
    parts = {"compile": compiling, "run": max(0.0, seconds - compiling - transfer), "transfer": transfer}
    return {name: round(value, 4) for name, value in parts.items()}


@contextmanager
def profile(workdir: pathlib.Path, *, wanted: bool = True) -> Iterator[pathlib.Path | None]:
    """Writes a JAX trace of the block into `workdir`/profile and yields that path; yields None if it is not wanted.

    The trace holds the work of programs on devices and host, but no Python calls, of which a run has millions.
    """
    if not wanted:
        yield None
        return
    folder, options = workdir / "profile", jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(folder, profiler_options=options):
        yield folder
