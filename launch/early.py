"""What is said before JAX is imported: settings of this project's config files, and what is wrong with them."""

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
def flags_as_before() -> Iterator[None]:
    """Takes back what is defined and parsed meanwhile."""
    before = set(flags.FLAGS)
    try:
        yield
    finally:
        for flag in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, flag)
        flags.FLAGS.unparse_flags()


def taken_out(arguments: Sequence[str], *, default: str) -> tuple[str, list[str]]:
    """The file of the last `--config`, and the arguments without any."""
    file, rest, follows = default, [], False
    for argument in arguments:
        found = re.fullmatch("--?config(?:=(.*))?", argument, re.DOTALL)
        if follows:
            file, follows = argument, False
        elif found is None:
            rest.append(argument)
        else:
            follows, file = found[1] is None, found[1] or file
    return file, rest


def settings_of(
    kind: str, file: pathlib.Path, arguments: Sequence[str], *, parse: Callable[[Sequence[str]], Any]
) -> list[Setting] | None:
    """All settings, with the values of a file and of flags; None where only the file itself can say them.

    Args:
      kind: what they are of, a name of `launch.kinds.KINDS`.
      file: the file.
      arguments: of the program, without `--config`.
      parse: parses all flags.
    """
    known = index.current()
    if known is None or not file.is_relative_to(index.CONFIGS) or any(re.match("--?flagfile", a) for a in arguments):
        return None
    found = known.file(kind, file.relative_to(index.CONFIGS).as_posix())
    if found is None:
        return None
    values = ConfigDict(index.nested(found))
    config_flags.DEFINE_config_dict("config", values, sys_argv=[*arguments])
    parse(arguments)
    chosen: Any = flags.FLAGS["config"].value
    given = index.flat(chosen.to_dict())
    if any(each.name == "defense" and given["defense"] != each.default for each in found):
        return None  # another defence has other settings
    return index.with_values(found, given)


def check(settings: Sequence[Setting]) -> None:
    """Raises InputError where a value is none that its setting may have, or a path names nothing."""
    given = {}
    for each in settings:
        if each.rule:
            given[each.name] = fitted(each.name, each.kind, each.rule, each.default)
    if given.get("model.checkpoint"):
        paths.existing(given["model.checkpoint"], name="model.checkpoint", expected=paths.CHECKPOINT)
    file, colon, _ = given.get("model.name", "").rpartition(":")
    if colon and file.endswith(".py"):
        paths.existing(file, name="model.name", expected=paths.PYTHON, is_there=pathlib.Path.is_file)
    for group, pictures in (("data", paths.PICTURES), ("clean", paths.CLASSES)):
        name, path = given.get(f"{group}.name"), given.get(f"{group}.path", "")
        if name == "npz":
            paths.existing(path, name=f"{group}.path", expected=paths.NPZ, is_there=pathlib.Path.is_file)
        if name == "folder":
            paths.existing(path, name=f"{group}.path", expected=pictures, is_there=pathlib.Path.is_dir)
