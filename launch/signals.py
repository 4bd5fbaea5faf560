"""Ctrl-C and SIGTERM in a program: a long stage saves its state, one line is printed, and the process ends.

Python's own handlers run between two lines of the main thread, which may be inside a compiled program for minutes, and
they raise wherever that thread is, even inside a library. So a separate thread waits for signals. It imports only
Python's standard library, so that it waits from the start.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

GRACE = 8.0
"""Seconds that a long computation gets to save its state; a preempted machine leaves about ten."""

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_STOPPING = "otbr_jax.runs.stopping"


def wait_for_signals() -> None:
    """Starts the thread that handles signals from now on; call it first, in the main thread of a program."""
    signal.pthread_sigmask(signal.SIG_BLOCK, set(_WORDS))  # threads that start later inherit it
    threading.Thread(target=_wait, name="signals", daemon=True).start()


def _wait() -> None:
    received = signal.Signals(signal.sigwait(set(_WORDS)))
    request = getattr(sys.modules.get(_STOPPING), "request", None)
    if request is not None:  # else there is nothing to save yet
        threading.Thread(target=_insist, daemon=True).start()
        request(wait=GRACE)
    _end(received)


def _insist() -> None:
    """Ends at once at a second signal."""
    _end(signal.Signals(signal.sigwait(set(_WORDS))))


def _end(received: signal.Signals) -> None:
    try:
        scan = any(argument.lstrip("-").partition("=")[0] == "scan" for argument in sys.argv if argument[:1] == "-")
        then = "what was printed stands" if scan else "the same command goes on from what is finished"
        print(f"\nerror: {_WORDS[received]}; {then}", file=sys.stderr, flush=True)
    finally:
        os._exit(128 + received)
