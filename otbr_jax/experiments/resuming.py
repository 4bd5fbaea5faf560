"""The state of a long computation on disk, so that one that was stopped goes on from there."""

from __future__ import annotations

import logging
import pathlib
from typing import Any

from otbr_jax.experiments.checkpoints import recover_checkpoint, replace_checkpoint, restore_checkpoint

log = logging.getLogger(__name__)

SAVE_EVERY = 30.0
"""Seconds between two checkpoints of a computation that goes on."""


def save_state(progress: pathlib.Path, state: Any) -> None:
    """Replaces the saved state, a pytree of arrays; what cannot be saved is warned about."""
    try:
        progress.parent.mkdir(parents=True, exist_ok=True)
        replace_checkpoint(progress, state)
    except Exception as error:  # a full disk is no reason to lose a day's training
        log.warning("the state of a training cannot be saved, it goes on: %s (%s)", progress, error)


def restore_state(progress: pathlib.Path, like: Any) -> Any:
    """The saved state in the structure `like`, arrays on the host; None if there is none, or none that can be read."""
    recover_checkpoint(progress)
    if not progress.exists():
        return None
    try:
        return restore_checkpoint(progress, like)
    except Exception as error:  # whatever Orbax makes of a damaged directory
        log.warning("the saved state of a training cannot be read, it starts anew: %s (%s)", progress, error)
        return None
