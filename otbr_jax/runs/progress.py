"""Progress of anything that takes longer than a few seconds: bars and clocks on a terminal, else lines.

The first process prints all of it to standard error. TQDM_DISABLE=1 prints nothing.
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
"""Letters of a description, so that bars are aligned."""
MINUTE = 60.0
"""Seconds between two lines about the same computation, if standard error is no terminal."""

Advance = Callable[..., None]


def say(line: str) -> None:
    """Prints a line, above a bar if there is one."""
    if not _silent():
        tqdm.write(line, file=sys.stderr)


def step_progress(description: str, total: int, *, unit: str) -> AbstractContextManager[Advance | None]:
    """Shows how long a step has been running; yields None.

    With OTBR_JAX_BARS=parts in the environment it is a bar that counts the step's parts, and yields the function that
    they call. Such a program holds a callback, so JAX's compilation cache cannot keep it.
    """
    if os.environ.get("OTBR_JAX_BARS") == "parts":
        return progress_bar(description, total, unit=unit)
    return _clock(description)


@contextmanager
def _clock(description: str) -> Iterator[None]:
    with _show(description, None, ""):
        yield None


def progress_bar(description: str, total: int, *, unit: str) -> AbstractContextManager[Advance]:
    """Shows a bar, or a line a minute; yields `advance(**values to show)`, to be called `total` times.

    It counts the calls, and is complete when the block ends without an exception.
    """
    return _show(description, total, unit)


def _show(description: str, total: int | None, unit: str) -> AbstractContextManager[Advance]:
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
    """A bar, or without a total a clock, that is redrawn every second."""
    shape = None if total else "{desc}: {elapsed}"
    options = {"desc": f"{description:<{WIDTH}}", "unit": unit, "bar_format": shape}
    with tqdm(total=total, **options, dynamic_ncols=True, disable=False) as bar:

        def advance(**values: float) -> None:
            if total and bar.n < total:
                bar.update()
            if values:
                bar.set_postfix_str(_values_text(values))

        with _ticking(1.0, bar.refresh):
            yield advance
        bar.update(total - bar.n if total else 0)


@contextmanager
def _lines(description: str, total: int | None, unit: str) -> Iterator[Advance]:
    """A line at the end, and one a minute before: in a file a bar would be one endless line."""
    began, count, last = time.monotonic(), 0, ""

    def print_line(state: str) -> None:
        text = ", ".join(filter(None, (state, last, f"{time.monotonic() - began:.0f} s")))
        print(f"{description}: {text}", file=sys.stderr, flush=True)

    def advance(**values: float) -> None:
        nonlocal count, last
        count, last = count + 1, _values_text(values)

    with _ticking(MINUTE, lambda: print_line(f"{unit} {count} of {total}" if total else "still running")):
        yield advance
    print_line("")


def _values_text(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items())
