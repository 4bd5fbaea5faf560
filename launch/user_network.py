"""The settings of a program when the network is the user's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from launch.cli import Config
from otbr_jax.models.registry import ModelConfig
from otbr_jax.runs.progress import say
from otbr_jax.settings import change
from otbr_jax.studies.repair_config import RepairConfig


def settings(config: Config) -> RepairConfig:
    """A program's settings; one line names the settings of the file's own victim that are ignored."""
    original = config()
    own = settings_of_user_network(original, is_set=config.is_set)
    ignored = [
        f"{name}.name={getattr(original.victim, name).name}"
        for name in ("data", "attack")
        if getattr(original.victim, name) != getattr(own.victim, name)
    ]
    if ignored:
        say(f"{config.file()}: ignores the settings of its own victim ({' and '.join(ignored)}); set them by flags")
    return own


def settings_of_user_network(config: RepairConfig, *, is_set: Callable[[str], bool]) -> RepairConfig:
    """The settings of a user's network, without the data and the attack of the configuration's own victim.

    Those belong to another network: measured with them, a backdoor would seem to be gone. Without a `model.name` the
    checkpoint says which network it is.

    Args:
      config: the settings.
      is_set: whether a flag sets a setting, or one of a group, such as `model.checkpoint`.
    """
    model, data, attack = config.victim.model, config.victim.data, config.victim.attack
    if not (is_set("model.checkpoint") or ":" in model.name):
        return config
    if not is_set("model.name"):
        sizes = ("width", "depth", "image_shape", "num_classes")
        values = {name: getattr(model, name) for name in sizes if is_set(f"model.{name}")}
        model = ModelConfig(name="", checkpoint=model.checkpoint, entry=model.entry, **values)
    if not (is_set("data.name") or is_set("data.path")):
        data = dataclasses.replace(data, name="none")
    if not is_set("attack"):
        attack = dataclasses.replace(attack, name="none")
    return change(config, model=model, data=data, attack=attack)
