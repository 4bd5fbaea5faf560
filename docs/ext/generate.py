"""Writes the pages that the code itself can say: `python docs/ext/generate.py FOLDER`.

`reference/commands.md` has every program of `launch/`, with its docstring and flags; `reference/settings.md` every
setting that a repair, a victim, a study or a detector may have, with what it may be, its default and what it is. The
other pages of `reference/` are those of `reference.py`; `colabs/` has the notebooks. `docs/conf.py` calls it in a
process of its own, before the site is built: programs define flags where they are imported.
"""

from __future__ import annotations

import importlib
import inspect
import pathlib
import shutil
import sys
from collections.abc import Collection, Iterator
from typing import Any

import reference
from absl import flags

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
REPAIR = "settings-of-a-repair"
COMMANDS = """# Command line

Every program of `launch/` runs from a clone: `python -m launch.NAME`. `--help` prints its flags and settings,
`--helpfull` all of them. Bad input ends in one line with status 2.
"""
SETTINGS = """# Settings

Every setting is a flag: `--config.GROUP.NAME=VALUE`. It is declared once, in the code, by `field(...)` of
`otbr_jax/settings.py`. Checks, `--help` and this page come from there. A config file of `configs/` says where its
defaults differ from those below.
"""


def programs() -> list[str]:
    """The names of the programs of `launch/`: the modules with a `main`."""
    return sorted(path.stem for path in (ROOT / "launch").glob("*.py") if "\ndef main(" in path.read_text("utf-8"))


def commands() -> str:
    """Every program: its docstring, its flags with defaults, and the settings that `--config` takes."""
    parts = [COMMANDS]
    for name in programs():
        parts += [f"(command-{name})=\n## launch.{name}\n", *_program(name)]
    return "\n".join(parts)


def _program(name: str) -> Iterator[str]:
    sys.argv = [f"launch.{name}"]
    module = importlib.import_module(f"launch.{name}")
    yield _prose(module.__doc__ or "")
    yield "\n| flag | default | what it is |\n|---|---|---|"
    for flag in flags.FLAGS.get_key_flags_for_module(f"launch.{name}"):
        if flag.name != "config":
            yield f"| `--{flag.name}` | {_value(flag.default)} | {_cell(_what(flag))} |"
    if hasattr(module, "CONFIG"):
        from launch.kinds import KINDS

        file, kind = f"configs/{module.CONFIG.default}", KINDS[module.CONFIG.kind]().Config
        title, anchor = ("a repair", REPAIR) if kind.__name__ == "RepairConfig" else (kind.__name__, _anchor(kind))
        yield f"| `--config` | `{file}` | Python file with the settings. |\n"
        yield f"`--config.NAME=VALUE` changes one of the settings of [{title}](settings.md#{anchor}).\n"
    else:
        yield ""
    for flag in [*flags.FLAGS]:
        if flag not in KEPT:
            delattr(flags.FLAGS, flag)


KEPT = frozenset(flags.FLAGS)
"""Flags of absl itself."""


def _what(flag: flags.Flag[Any]) -> str:
    from launch import helping

    return helping._what(flag)


def settings() -> str:
    """Every class of settings that a program reads, each group once."""
    from launch.kinds import KINDS as PROGRAMS
    from otbr_jax.studies.repair_config import KINDS, RepairConfig
    from otbr_jax.victims.config import VictimConfig

    groups: dict[type, None] = {}
    parts = [f"({REPAIR})=\n## A repair, whatever the defence\n", _about(RepairConfig)]
    parts += _table(VictimConfig, groups) + _table(RepairConfig, groups, {"clean", "relearning", "repetition"})[2:]
    parts += ["\n## A repair, by defence\n", "`defense` names the method. Each has settings of its own.\n"]
    for name, each in KINDS.items():
        parts += [f"### The defence {name}\n", *_table(each, groups), ""]
    parts.append("## Other programs\n")
    for name in programs():
        config = getattr(importlib.import_module(f"launch.{name}"), "CONFIG", None)
        each = None if config is None else PROGRAMS[config.kind]().Config
        if each not in (None, RepairConfig):
            parts += [f"({_anchor(each)})=\n### launch.{name}\n", _about(each), *_table(each, groups), ""]
    parts.append("## Groups\n")
    done: set[type] = set()
    while waiting := [group for group in groups if group not in done]:
        for each in waiting:
            done.add(each)
            parts += [f"({_anchor(each)})=\n### {each.__name__}\n", _about(each), *_table(each, groups), ""]
    return "\n".join(parts)


def _about(each: type) -> str:
    return _prose((each.__doc__ or "").partition("\n\nAttributes:")[0])


def _table(each: type, groups: dict[type, None], names: Collection[str] = ()) -> list[str]:
    """The fields of a class, or those of `names`; groups that they are of are added to `groups`."""
    from otbr_jax.settings import declarations, in_words

    lines = ["| setting | what it may be | default | what it is |", "|---|---|---|---|"]
    for name, (kind, default, rule) in declarations(each).items():
        if names and name not in names:
            continue
        if declarations(kind):
            groups[kind] = None
            words, shown = f"[{kind.__name__}](#{_anchor(kind)})", _differing(kind, default)
        else:
            words, shown = _cell(in_words(kind, rule)), _value(default)
        lines.append(f"| `{name}` | {words} | {shown} | {_cell(rule.doc)} |")
    return lines


def _differing(kind: type, default: Any) -> str:
    """What of a group differs from its class's own defaults."""
    from otbr_jax.settings import declarations

    own = declarations(kind)
    given = [
        f"`{name}={getattr(default, name)!r}`".replace("|", "\\|")
        for name in own
        if not declarations(own[name].kind) and getattr(default, name) != own[name].default
    ]
    return ", ".join(given)


def _anchor(each: type) -> str:
    return f"settings-{each.__module__.removeprefix('otbr_jax.').replace('.', '-')}-{each.__name__}".lower()


def _value(default: Any) -> str:
    return "" if default in (None, "", [], ()) else f"`{default}`".replace("|", "\\|")


def _cell(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
    return text


def _prose(docstring: str) -> str:
    """A docstring as Markdown: single back quotes mean the same in both."""
    return inspect.cleandoc(docstring) + "\n"


def notebooks(folder: pathlib.Path) -> None:
    """Copies the notebooks."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in sorted((ROOT / "colabs").glob("*.ipynb")):
        _put(folder / path.name, path.read_text(encoding="utf-8"))


def _put(path: pathlib.Path, text: str) -> None:
    """Writes a file unless it is there with this text: Sphinx reads again what is newer."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def main(folder: pathlib.Path) -> None:
    """Writes all of it, and takes away what is no longer written."""
    notebooks(folder / "colabs")
    pages = reference.pages() | {"commands": commands(), "settings": settings()}
    (folder / "reference").mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        _put(folder / "reference" / f"{name}.md", text)
    for path in [*folder.glob("*.md"), *(folder / "reference").glob("*.md")]:
        if path.parent == folder or path.stem not in pages:
            path.unlink()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(pathlib.Path(sys.argv[1]))
