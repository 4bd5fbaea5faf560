"""Progress bars for what takes longer than a few seconds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


def hidden() -> bool:
    """Whether nobody looks at bars: TQDM_DISABLE=1 is in the environment.

    Programs that need not report their steps hold no callback, so that JAX's compilation cache keeps them.
    """
    return os.environ.get("TQDM_DISABLE", "") not in ("", "0")


@contextmanager
def progress_bar(description: str, total: int, *, unit: str) -> Iterator[Callable[..., None]]:
    """Shows a bar on standard error; yields `advance(**shown values)`, to be called `total` times.

    The bar counts what was called, and is complete when the block ends without an exception.
    """
    with tqdm(total=total, desc=f"{description:<28}", unit=unit, leave=True, dynamic_ncols=True) as bar:

        def advance(**values: float) -> None:
            if bar.n < total:
                bar.update()
            if values:
                bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()})

        yield advance
        bar.update(total - bar.n)
