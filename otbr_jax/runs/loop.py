"""The loop of a long computation on the host: its state is saved on the way, so that it resumes after a stop."""

from __future__ import annotations

import logging
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from otbr_jax.runs import hosts, stopping
from otbr_jax.runs.checkpoints import recover_checkpoint, replace_checkpoint, restore_checkpoint

log = logging.getLogger(__name__)
State = TypeVar("State")

SAVE_EVERY = 30.0
"""Seconds between two checkpoints of a running computation."""


def rounds(
    start: State,
    body: Callable[[State], tuple[State, Mapping[str, Any]]],
    *,
    done: Callable[[State], bool],
    count: Callable[[State], int],
    progress: pathlib.Path | None = None,
    save_every: float | None = None,
    place: Callable[[State], State] = lambda state: state,
    on_round: Callable[..., None] = lambda **shown: None,
) -> State:
    """Runs rounds until the state is done; resumes from a saved state if there is one.

    Args:
      start: a pytree of arrays.
      body: `state -> (state, values to show)`.
      done: whether a state is the last.
      count: how many rounds a state has completed.
      progress: where states are saved, and read at the start; None for nowhere.
      save_every: seconds between two saves; by default `SAVE_EVERY`.
      place: moves a restored state to the devices.
      on_round: called after each round, and once for each round that a restored state has completed (a progress bar).
    """
    state = start
    if progress is not None and (saved := _restore_everywhere(progress, start)) is not None:
        state = place(saved)
    for _ in range(count(state)):
        on_round()
    saved_at = time.monotonic()
    every = SAVE_EVERY if save_every is None else save_every
    with stopping.Saves():
        while not done(state):
            state, shown = body(state)
            on_round(**{name: float(value) for name, value in shown.items()})
            due = time.monotonic() - saved_at >= every or stopping.requested()
            if progress is not None and due and not done(state):
                saved_at = time.monotonic()
                if hosts.is_first():  # every process has the state whole
                    save_state(progress, state)
            if stopping.requested():
                stopping.saved()
    return state


def _restore_everywhere(progress: pathlib.Path, like: Any) -> Any:
    """As `restore_state` in all processes; None if the first one cannot read it."""
    if not hosts.are_many():
        return restore_state(progress, like)
    saved = restore_state(progress, like) if hosts.is_first() else None
    if not hosts.first(lambda: saved is not None):
        return None
    return saved if hosts.is_first() else restore_checkpoint(progress, like)


def save_state(progress: pathlib.Path, state: Any) -> None:
    """Replaces the saved state, a pytree of arrays; a failure is only a warning."""
    try:
        progress.parent.mkdir(parents=True, exist_ok=True)
        replace_checkpoint(progress, state)
    except Exception as error:  # a full disk is no reason to lose a day's training
        log.warning("the state of a training cannot be saved; the training goes on: %s (%s)", progress, error)


def restore_state(progress: pathlib.Path, like: Any) -> Any:
    """The saved state in the structure `like`, arrays on the host; None if there is none, or it cannot be read."""
    recover_checkpoint(progress)
    if not progress.exists():
        return None
    try:
        return restore_checkpoint(progress, like)
    except Exception as error:  # Orbax raises many kinds for a damaged directory
        log.warning("the saved state of a training cannot be read; the training starts anew: %s (%s)", progress, error)
        return None
