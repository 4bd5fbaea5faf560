"""Ctrl-C and SIGTERM in a program: what a long stage has is saved, one line is said, and the process ends.

Python's own handlers run between two lines of the main thread, which may be minutes inside a compiled program, and
raise wherever that is, in the middle of a library too. So a thread of its own waits for signals here. It imports
nothing but Python's own library, so that it waits from the first moment on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

GRACE = 8.0
"""Seconds that a long computation is given to save what it has; a machine that is taken away leaves about ten."""

_SAID = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_STOPPING = "otbr_jax.runs.stopping"


def wait_for_signals() -> None:
    """From now on signals end the process here; call it first, in the main thread of a program."""
    signal.pthread_sigmask(signal.SIG_BLOCK, set(_SAID))  # threads that start later inherit it
    threading.Thread(target=_wait, name="signals", daemon=True).start()


def _wait() -> None:
    received = signal.Signals(signal.sigwait(set(_SAID)))
    request = getattr(sys.modules.get(_STOPPING), "request", None)
    if request is not None:  # else nothing is computed yet
        threading.Thread(target=_insist, daemon=True).start()
        request(wait=GRACE)
    _end(received)


def _insist() -> None:
    """Whoever sends a second signal does not want to wait."""
    _end(signal.Signals(signal.sigwait(set(_SAID))))


def _end(received: signal.Signals) -> None:
    try:
        scan = any(argument.lstrip("-").partition("=")[0] == "scan" for argument in sys.argv if argument[:1] == "-")
        then = "what was printed stands" if scan else "the same command goes on from what is finished"
        print(f"\nerror: {_SAID[received]}; {then}", file=sys.stderr, flush=True)
    finally:
        os._exit(128 + received)
