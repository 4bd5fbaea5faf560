"""What is said while something takes longer than a few seconds: bars and clocks where somebody looks, else lines.

All of it goes to standard error, by the first of several processes. TQDM_DISABLE=1 says nothing.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tqdm import tqdm

from otbr_jax.runs import hosts

WIDTH = 28
"""Letters of a description, so that bars stand below each other."""
MINUTE = 60.0
"""Seconds between two lines about the same thing, where nobody looks."""

Advance = Callable[..., None]


def say(line: str) -> None:
    """A line, above a bar that is shown."""
    if not _silent():
        tqdm.write(line, file=sys.stderr)


def step_progress(description: str, total: int, *, unit: str) -> AbstractContextManager[Advance | None]:
    """Shows for how long a step has been running; gives None.

    With OTBR_JAX_BARS=parts in the environment it is a bar that counts the step's parts, and gives what they are to
    call. Such a program holds a callback, so that JAX's compilation cache cannot keep it.
    """
    if os.environ.get("OTBR_JAX_BARS") == "parts":
        return progress_bar(description, total, unit=unit)
    return _clock(description)


@contextmanager
def _clock(description: str) -> Iterator[None]:
    with _shown(description, None, ""):
        yield None


def progress_bar(description: str, total: int, *, unit: str) -> AbstractContextManager[Advance]:
    """Shows a bar, or a line a minute; gives `advance(**shown values)`, to be called `total` times.

    It counts what was called, and is complete when the block ends without an exception.
    """
    return _shown(description, total, unit)


def _shown(description: str, total: int | None, unit: str) -> AbstractContextManager[Advance]:
    if _silent():
        return _nothing()
    return (_bar if sys.stderr.isatty() else _lines)(description, total, unit)


def _silent() -> bool:
    return os.environ.get("TQDM_DISABLE", "0") not in ("", "0") or not hosts.is_first()


@contextmanager
def _nothing() -> Iterator[Advance]:
    yield lambda **values: None


@contextmanager
def _ticking(every: float, tick: Callable[[], None]) -> Iterator[None]:
    """Calls `tick` again and again while the block runs."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(every):
            tick()

    thread = threading.Thread(target=run, name="clock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _bar(description: str, total: int | None, unit: str) -> Iterator[Advance]:
    """A bar, or without a total a clock, that moves every second."""
    shape = None if total else "{desc}: {elapsed}"
    shown = {"desc": f"{description:<{WIDTH}}", "unit": unit, "bar_format": shape}
    with tqdm(total=total, **shown, dynamic_ncols=True, disable=False) as bar:

        def advance(**values: float) -> None:
            if total and bar.n < total:
                bar.update()
            if values:
                bar.set_postfix_str(_shown_values(values))

        with _ticking(1.0, bar.refresh):
            yield advance
        bar.update(total - bar.n if total else 0)


@contextmanager
def _lines(description: str, total: int | None, unit: str) -> Iterator[Advance]:
    """A line at the end, and one a minute before: in files bars would be one line without an end."""
    began, count, shown = time.monotonic(), 0, ""

    def line(done: str) -> None:
        said = ", ".join(filter(None, (done, shown, f"{time.monotonic() - began:.0f} s")))
        print(f"{description}: {said}", file=sys.stderr, flush=True)

    def advance(**values: float) -> None:
        nonlocal count, shown
        count, shown = count + 1, _shown_values(values)

    with _ticking(MINUTE, lambda: line(f"{unit} {count} of {total}" if total else "still running")):
        yield advance
    line("")


def _shown_values(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items())
