"""Settings about a network that is brought on the command line."""

from __future__ import annotations

from typing import Any

from launch.cli import Config
from otbr_jax.runs.progress import say
from otbr_jax.studies.repair_config import brought


def settings(config: Config) -> Any:
    """A program's settings; a line says what of its configuration does not count for a network that is brought."""
    given = config()
    found = brought(given, named=config.named)
    left = [name for name in ("data", "attack") if getattr(found, name) != getattr(given, name)]
    if left:
        names = " and ".join(f"{name}.name={getattr(given, name).name}" for name in left)
        say(f"{config.file()}: left out what is about its own victim ({names}); name it to use it")
    return found
