"""What is shown of what takes longer than a few seconds: bars that count, and clocks."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

WIDTH = 28
"""Letters of a description, so that bars stand below each other."""


@contextmanager
def step_progress(description: str, total: int, *, unit: str) -> Iterator[Callable[..., None] | None]:
    """Shows on standard error for how long a step has been running; yields None.

    With OTBR_JAX_BARS=parts in the environment it is a bar that counts the step's parts, and yields what they are to
    call. Such a program holds a callback, so that JAX's compilation cache cannot keep it. TQDM_DISABLE=1 shows nothing.
    """
    if os.environ.get("OTBR_JAX_BARS") == "parts":
        with progress_bar(description, total, unit=unit) as advance:
            yield advance
    else:
        with clock(description):
            yield None


@contextmanager
def clock(description: str) -> Iterator[None]:
    """Shows for how long the block has been running; every second where somebody looks, else at its end."""
    ended = threading.Event()
    with tqdm(desc=f"{description:<{WIDTH}}", bar_format="{desc}: {elapsed}", leave=True) as bar:

        def tick() -> None:
            while not ended.wait(1.0):
                bar.refresh()

        thread = threading.Thread(target=tick, daemon=True)
        if sys.stderr.isatty() and not bar.disable:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            if thread.is_alive():
                thread.join()


@contextmanager
def progress_bar(description: str, total: int, *, unit: str) -> Iterator[Callable[..., None]]:
    """Shows a bar on standard error; yields `advance(**shown values)`, to be called `total` times.

    The bar counts what was called, and is complete when the block ends without an exception.
    """
    with tqdm(total=total, desc=f"{description:<{WIDTH}}", unit=unit, leave=True, dynamic_ncols=True) as bar:

        def advance(**values: float) -> None:
            if bar.n < total:
                bar.update()
            if values:
                bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()})

        yield advance
        bar.update(total - bar.n)
