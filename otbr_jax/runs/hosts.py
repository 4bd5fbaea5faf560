"""Several processes that compute one run together, on one machine or many; `launch.hosts` joins them.

All of them run the same code on the same settings, and share the working directory. All write the checkpoints of
stages. Everything else that is written, or depends on a disk or a clock, is done by the first process, which broadcasts
the result. With one process these functions have no effect.
"""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from otbr_jax.errors import InputError

T = TypeVar("T")

PATIENCE = 20.0
"""Seconds after which a shared folder must show one host what another one wrote."""


def are_many() -> bool:
    """Whether there are several processes."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when all processes have called this with the same name."""
    if are_many():
        multihost_utils.sync_global_devices(name)


def first(function: Callable[[], T]) -> T:
    """The result of `function` in the first process, a plain JSON value, in all processes; only the first calls it.

    Raises InputError, in every process, if it does in the first.
    """
    if not are_many():
        return function()
    outcome: dict[str, Any] = {}
    if is_first():
        try:
            outcome = {"value": function()}
        except InputError as error:
            outcome = {"error": str(error)}
    outcome = json.loads(_broadcast(json.dumps(outcome)))
    if "error" in outcome:
        raise InputError(outcome["error"])
    value: T = outcome["value"]
    return value


def _broadcast(text: str) -> str:
    """The first process's text, in all processes."""
    content = np.frombuffer(text.encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    padded = np.zeros(length, np.uint8)
    if is_first():
        padded[:] = content
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))).decode()


def agree(digest: str, *, name: str, what: str) -> None:
    """Raises InputError, in every process, if they do not all pass the same digest.

    Args:
      digest: a hash of hexadecimal digits, of the same length in all processes.
      name: of the argument or stage, for the message.
      what: what it is, for the message.
    """
    if not are_many():
        return
    own = np.frombuffer(digest.encode(), np.uint8)
    digests = np.asarray(multihost_utils.process_allgather(own))
    others = [index for index, row in enumerate(digests) if not np.array_equal(row, digests[0])]
    if others:
        raise InputError(
            f"{name}: expected the same {what} in all {jax.process_count()} processes, found others in process "
            f"{others[0]} than in process 0"
        )


def check_shared(path: pathlib.Path, *, name: str) -> None:
    """Waits until a file that the first process wrote appears; raises InputError if it does not."""
    until = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > until:
            raise InputError(
                f"{name}: expected a folder that all hosts share, found nothing of process 0's in {path.parent} on "
                f"process {jax.process_index()}"
            )
        time.sleep(0.1)
