"""What `--help` prints, and which flag a mistyped one was meant to be."""

from __future__ import annotations

import difflib
import inspect
import shlex
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import flags

from otbr_jax.settings import Setting

WIDTH = 100
"""Columns of a terminal."""
USERS_OWN = ("model", "data", "clean")
"""Groups of settings about the user's own network and images; they come first."""
VICTIMS = ("attack", "training", "relearning")
"""Groups of settings about victims that are trained here, or whose trigger is known."""


def program_help(usage: str, own: Iterable[flags.Flag]) -> str:
    """What a program does, and its flags with their defaults.

    Args:
      usage: its docstring.
      own: its flags.
    """
    paragraphs = [_fill(part) for part in inspect.cleandoc(usage).split("\n\n")]
    entries = [_entry(flag.name, flag.default, _what(flag)) for flag in own]
    return "\n\n".join([*paragraphs, "\n".join(["flags:", *entries])])


def settings_help(settings: Sequence[Setting], *, file: str, whole: bool) -> str:
    """The flag `--config` and those of single settings.

    Args:
      settings: with the file's defaults, as `otbr_jax.settings.describe` gives them.
      file: the name of the config file.
      whole: whether groups within groups, and those about victims, are listed too, and not only named.
    """
    lines = [
        _entry("config", file, "Python file with the settings, here or in the checkout; below are its defaults."),
        "",
        "settings (--helpfull lists all):" if not whole else "settings:",
    ]
    groups = {setting.name for setting in settings if not setting.words}

    def place(setting: Setting) -> int:
        group = setting.name.partition(".")[0]
        return USERS_OWN.index(group) if group in USERS_OWN else -1 if group not in groups else len(USERS_OWN)

    folded = set() if whole else {name for name in groups if "." in name or name in VICTIMS}
    for name, words, default, doc, *_ in sorted(settings, key=place):
        group = name if name in groups else name.rpartition(".")[0]
        if any(group == each or group.startswith(f"{each}.") for each in folded):
            continue
        if words:
            lines.append(_entry(f"config.{name}", default, f"{doc} {words[0].upper()}{words[1:]}."))
        else:
            lines += ["", _fill(f"{name}: {doc}", later=2)]
    if folded:
        names = ", ".join(setting.name for setting in settings if setting.name in folded and "." not in setting.name)
        lines += ["", _fill(f"--helpfull also lists the settings of {names}, and of groups within groups.")]
    return "\n".join(lines)


def unknown_flag(name: str, known: Iterable[str], *, formerly: Mapping[str, str] = {}) -> str:
    """The message about a flag that does not exist, with its current name or that of the nearest flag.

    Flags are compared by as many of their last parts as the unknown one has: `epochs` with the last one, and
    `training.epochs` with the last two. Of equally near ones, the one with the fewest parts is meant.

    Args:
      name: as it was given, without dashes.
      known: names of flags; those of settings start with `config.`.
      formerly: old names of flags, and their current ones.
    """
    if name in formerly:
        return f"unknown flag --{name}; it is --{formerly[name]} now"
    wanted = name.removeprefix("config.")
    parts = wanted.count(".") + 1

    def likeness(flag: str) -> tuple[float, int]:
        last = flag.removeprefix("config.").split(".")[-parts:]
        return difflib.SequenceMatcher(None, wanted, ".".join(last)).ratio(), -flag.count(".")

    nearest = max(known, key=likeness)
    hint = f"did you mean --{nearest}?" if likeness(nearest)[0] > 0.6 else "--help lists all"
    return f"unknown flag --{name}; {hint}"


def _what(flag: flags.Flag) -> str:
    """The text that the flag was defined with, without what absl adds to it."""
    choices = getattr(flag.parser, "enum_values", None) or ()
    text = (flag.help or "").removeprefix(f"<{'|'.join(choices)}>: ")
    text, repeated, _ = text.partition(";\n    repeat this option")
    return text + (f" One of {[*choices]}." if choices else "") + (" May be repeated." if repeated else "")


def _entry(name: str, default: Any, doc: str) -> str:
    """A flag with its default, and below it what it is."""
    given = f"--{name}" if default in (None, []) else f"--{name}={_plain(default)}"
    if shlex.quote(given) != given:
        given = f'"{given}"'
    return f"{_fill(given, first=2, later=6)}\n{_fill(doc, first=6, later=6)}"


def _fill(text: str, *, first: int = 0, later: int = 0) -> str:
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=first * " ",
        subsequent_indent=later * " ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _plain(default: Any) -> str:
    return ",".join(default) if isinstance(default, list) else str(default)
