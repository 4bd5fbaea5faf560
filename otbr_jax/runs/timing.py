"""Where the time of a stage goes: compiling, running, moving arrays, the disk; and traces of it for a profiler."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import jax

PARTS = ("compile", "run", "transfer", "disk")
"""What a stage's seconds are spent on.

`compile` is tracing, lowering and compiling, or reading a compiled program; `transfer` moves arrays to the devices and
back; `disk` writes or reads the stage. `run` is the rest, with what a long stage saves on the way.
"""


@contextmanager
def compiling() -> Iterator[Callable[[], float]]:
    """Listens to JAX while the block runs; yields a function that says how many seconds it compiled so far."""
    found: list[tuple[float, float]] = []

    def heard(event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            now = time.perf_counter()
            found.append((now - duration_secs, now))

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        yield lambda: covered(found)
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)


def covered(intervals: Sequence[tuple[float, float]]) -> float:
    """The length of a union of intervals `(begin, end)`: what JAX traces inside a trace counts once."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def split(seconds: float, *, compiled: float, moved: float) -> dict[str, float]:
    """The parts of computing a stage but for the disk; they add up to `seconds`."""
    parts = {"compile": compiled, "run": max(0.0, seconds - compiled - moved), "transfer": moved}
    return {name: round(value, 4) for name, value in parts.items()}


@contextmanager
def profile(workdir: pathlib.Path, *, wanted: bool = True) -> Iterator[pathlib.Path | None]:
    """Writes a JAX trace of the block into `workdir`/profile and yields that path; does nothing where it is not wanted.

    It holds what programs did on devices and host, not each Python call, of which a run has millions.
    """
    if not wanted:
        yield None
        return
    folder, options = workdir / "profile", jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(folder, profiler_options=options):
        yield folder
