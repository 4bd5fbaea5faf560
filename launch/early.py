"""Checks that need no JAX: the settings of this project's config files, and the paths that they name."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from launch import index
from otbr_jax import paths
from otbr_jax.settings import Setting, fitted


@contextmanager
def temporary_flags() -> Iterator[None]:
    """Undefines the flags that the block defines, and forgets what it parses."""
    before = set(flags.FLAGS)
    try:
        yield
    finally:
        for flag in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, flag)
        flags.FLAGS.unparse_flags()


def split_config(arguments: Sequence[str], *, default: str) -> tuple[str, list[str]]:
    """The file of the last `--config`, and the arguments without any."""
    file, rest, follows = default, [], False
    for argument in arguments:
        flag = re.fullmatch("--?config(?:=(.*))?", argument, re.DOTALL)
        if follows:
            file, follows = argument, False
        elif flag is None:
            rest.append(argument)
        else:
            follows, file = flag[1] is None, flag[1] or file
    return file, rest


def settings_of(
    kind: str, file: pathlib.Path, arguments: Sequence[str], *, parse: Callable[[Sequence[str]], Any]
) -> list[Setting] | None:
    """All settings, with the values of a file and of flags; None if the file has to be run for them.

    Args:
      kind: what they are of, a name of `launch.kinds.KINDS`.
      file: the file.
      arguments: of the program, without `--config`.
      parse: parses all flags.
    """
    known = index.current()
    if known is None or not file.is_relative_to(index.CONFIGS) or any(re.match("--?flagfile", a) for a in arguments):
        return None
    settings = known.file(kind, file.relative_to(index.CONFIGS).as_posix())
    if settings is None:
        return None
    values = ConfigDict(index.nested(settings))
    config_flags.DEFINE_config_dict("config", values, sys_argv=[*arguments])
    parse(arguments)
    config: Any = flags.FLAGS["config"].value
    changed = index.flat(config.to_dict())
    if any(each.name == "defense" and changed["defense"] != each.default for each in settings):
        return None  # another defence has other settings
    return index.with_values(settings, changed)


def check(settings: Sequence[Setting]) -> None:
    """Raises InputError if a setting has a value that it may not have, or a path does not exist."""
    values = {}
    for each in settings:
        if each.rule:
            values[each.name] = fitted(each.name, each.kind, each.rule, each.default)
    if values.get("model.checkpoint"):
        paths.existing(values["model.checkpoint"], name="model.checkpoint", expected=paths.CHECKPOINT)
    file, colon, _ = values.get("model.name", "").rpartition(":")
    if colon and file.endswith(".py"):
        paths.existing(file, name="model.name", expected=paths.PYTHON, is_there=pathlib.Path.is_file)
    for group, images in (("data", paths.TEST_IMAGES), ("clean", paths.CLASSES)):
        name, path = values.get(f"{group}.name"), values.get(f"{group}.path", "")
        if name == "npz":
            paths.existing(path, name=f"{group}.path", expected=paths.NPZ, is_there=pathlib.Path.is_file)
        if name == "folder":
            paths.existing(path, name=f"{group}.path", expected=images, is_there=pathlib.Path.is_dir)
