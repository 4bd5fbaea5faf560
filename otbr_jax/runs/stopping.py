"""Asking a long computation to save what it has, from another thread: the process is about to end.

`loop.rounds` asks after every round. Nothing is asked unless somebody calls `request`, as the command lines do when a
signal comes.
"""

from __future__ import annotations

import threading

_requested = threading.Event()
_saving = threading.Event()
_saved = threading.Event()


def request(*, wait: float) -> None:
    """Asks whoever computes to save; returns when that is done, there is nothing to save, or so many seconds are over.

    Args:
      wait: seconds.
    """
    _requested.set()
    if _saving.is_set():
        _saved.wait(wait)


def requested() -> bool:
    """Whether the process is about to end: whoever asks saves what it has, and calls `saved`."""
    return _requested.is_set()


def saved() -> None:
    """What there was to save is saved; waits for the process to end."""
    _saved.set()
    threading.Event().wait(60)


class Saves:
    """A context in which `requested` is asked now and then."""

    def __enter__(self) -> None:
        """From here on `request` waits."""
        _saving.set()

    def __exit__(self, *_: object) -> None:
        """Nothing is left to save."""
        _saving.clear()
