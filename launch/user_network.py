"""Settings about a network of the user's own, on the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from launch.cli import Config
from otbr_jax.models.registry import ModelConfig
from otbr_jax.runs.progress import say
from otbr_jax.settings import change
from otbr_jax.studies.repair_config import RepairConfig


def settings(config: Config) -> RepairConfig:
    """A program's settings; a line says what of its configuration does not count for a user's network."""
    given = config()
    found = about_user_network(given, named=config.named)
    ours, theirs = given.victim, found.victim
    left = [
        f"{name}.name={getattr(ours, name).name}"
        for name in ("data", "attack")
        if getattr(ours, name) != getattr(theirs, name)
    ]
    if left:
        say(f"{config.file()}: left out what is about its own victim ({' and '.join(left)}); name it to use it")
    return found


def about_user_network(config: RepairConfig, *, named: Callable[[str], bool]) -> RepairConfig:
    """The settings of a user's network, without what a configuration says of its own victim.

    Its data and its attack are another network's: measured with them, a backdoor would seem to be gone. Without a
    `model.name` the checkpoint tells which network it is.

    Args:
      config: the settings.
      named: whether a setting, or one of a group, was named beside the configuration, such as `model.checkpoint`.
    """
    model, data, attack = config.victim.model, config.victim.data, config.victim.attack
    if not (named("model.checkpoint") or ":" in model.name):
        return config
    if not named("model.name"):
        sizes = ("width", "depth", "image_shape", "num_classes")
        given = {name: getattr(model, name) for name in sizes if named(f"model.{name}")}
        model = ModelConfig(name="", checkpoint=model.checkpoint, entry=model.entry, **given)
    if not (named("data.name") or named("data.path")):
        data = dataclasses.replace(data, name="none")
    if not named("attack"):
        attack = dataclasses.replace(attack, name="none")
    return change(config, model=model, data=data, attack=attack)
