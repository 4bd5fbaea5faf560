"""Stops a long computation from another thread: it saves its state, because the process is about to end.

`loop.rounds` checks `requested` after every round. Command lines call `request` when a signal arrives.
"""

from __future__ import annotations

import threading

_requested = threading.Event()
_saving = threading.Event()
_saved = threading.Event()


def request(*, wait: float) -> None:
    """Requests a save; returns when it is done, when there is nothing to save, or after `wait` seconds.

    Args:
      wait: seconds.
    """
    _requested.set()
    if _saving.is_set():
        _saved.wait(wait)


def requested() -> bool:
    """Whether the process is about to end; if so, the caller saves its state and calls `saved`."""
    return _requested.is_set()


def saved() -> None:
    """Reports that the state is saved; waits for the process to end."""
    _saved.set()
    threading.Event().wait(60)


class Saves:
    """A context in which `requested` is checked regularly."""

    def __enter__(self) -> None:
        """From here on `request` waits."""
        _saving.set()

    def __exit__(self, *_: object) -> None:
        """Nothing is left to save."""
        _saving.clear()
