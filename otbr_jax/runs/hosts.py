"""Several processes that compute one run together, on one machine or many; see `launch.hosts` for how they meet.

All of them run the same code on the same settings, and share the working directory. What is written but for the
checkpoints of stages, and whatever depends on a disk or a clock, is left to the first process, which tells the others.
With one process nothing here does anything.
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
"""Seconds that a shared folder is given to show one host what another one wrote."""


def are_many() -> bool:
    """Whether other processes take part."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when all processes have come so far; the name says where, and is the same for all."""
    if are_many():
        multihost_utils.sync_global_devices(name)


def first(function: Callable[[], T]) -> T:
    """What `function` returns in the first process, a plain JSON value; the others are told, and do not call it.

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
    told = json.loads(_told(json.dumps(outcome)))
    if "error" in told:
        raise InputError(told["error"])
    value: T = told["value"]
    return value


def _told(text: str) -> str:
    """The first process's text."""
    content = np.frombuffer(text.encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    padded = np.zeros(length, np.uint8)
    if is_first():
        padded[:] = content
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))).decode()


def agree(digest: str, *, name: str, what: str) -> None:
    """Raises InputError, in every process, if they do not all bring the same text.

    Args:
      digest: a hash of hexadecimal digits, of the same length in all processes.
      name: of the argument or stage, for the message.
      what: what it is, for the message.
    """
    if not are_many():
        return
    own = np.frombuffer(digest.encode(), np.uint8)
    found = np.asarray(multihost_utils.process_allgather(own))
    others = [index for index, row in enumerate(found) if not np.array_equal(row, found[0])]
    if others:
        raise InputError(
            f"{name}: expected the same {what} in all {jax.process_count()} processes, found others in process "
            f"{others[0]} than in process 0"
        )


def check_shared(path: pathlib.Path, *, name: str) -> None:
    """Waits until a file that the first process wrote is seen; raises InputError if it never is."""
    until = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > until:
            raise InputError(
                f"{name}: expected a folder that all hosts share, found nothing of process 0's in {path.parent} on "
                f"process {jax.process_index()}"
            )
        time.sleep(0.1)
