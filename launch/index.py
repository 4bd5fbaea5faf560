"""All settings and this project's config files without JAX, from `index.json`.

`python -m launch.write_index` writes it. `digest` is a hash of the declarations that it was made from. If they have
changed, the file is ignored, and programs import JAX to print the same.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import otbr_jax
from otbr_jax.settings import Rule, Setting, in_words

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = CHECKOUT / "configs"
FILE = pathlib.Path(__file__).with_name("index.json")

_TYPES: Mapping[str, Any] = {"bool": bool, "int": int, "float": float, "str": str, "...": ...}
# A class of settings, or a constant, with the lines below it that are indented or close a bracket.
_DECLARED = re.compile(
    r"^(?:@settings\(.*\n(?:@.*\n)*class |[A-Z][A-Z0-9_]*\b.*=).*\n(?:(?:[\s)\]}].*)?\n)*", re.MULTILINE
)


class File(NamedTuple):
    """A file of `configs/`.

    Attributes:
      kind: the kind of its settings, a name of `launch.kinds.KINDS`.
      variant: which of them; the defence of a repair, else empty.
      values: where they differ from the defaults.
    """

    kind: str
    variant: str
    values: Mapping[str, Any]


class Index(NamedTuple):
    """What `index.json` holds.

    Attributes:
      digest: see `digest`.
      choices: the names that a flag is chosen from, such as those of all detectors.
      groups: declarations of settings by group: of the settings in no group, or of a group and all below it.
      kinds: `{kind: {variant: names of groups}}`.
      files: those of `configs/`, by their path there.
    """

    digest: str
    choices: Mapping[str, Sequence[str]]
    groups: Mapping[str, Mapping[str, Mapping[str, Any]]]
    kinds: Mapping[str, Mapping[str, Sequence[str]]]
    files: Mapping[str, Sequence[Any]]

    def all_settings(self, kind: str) -> list[Setting]:
        """As `otbr_jax.settings.describe_all` gives them."""
        return [each for variant in self.kinds[kind] for each in self.settings(kind, variant)]

    def settings(self, kind: str, variant: str) -> list[Setting]:
        """As `otbr_jax.settings.describe` gives them."""
        groups = (self.groups[name] for name in self.kinds[kind][variant])
        return [_setting(name, values) for group in groups for name, values in group.items()]

    def file(self, kind: str, path: str) -> list[Setting] | None:
        """The settings with the values of a file of `configs/`; None if it is unknown, or of another kind."""
        file = File(*self.files.get(path, ("", "", {})))
        return with_values(self.settings(kind, file.variant), file.values) if file.kind == kind else None


@functools.cache
def current() -> Index | None:
    """The index; None if the code has changed since it was written."""
    try:
        index = Index(**json.loads(FILE.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return index if index.digest == digest() else None


def digest() -> str:
    """A hash of what the index is made from: config files, and in the library classes of settings and constants."""
    hashed = hashlib.sha256()
    for path in sorted(CONFIGS.rglob("*.py")):
        hashed.update(f"{path.relative_to(CONFIGS)}\n".encode() + path.read_bytes())
    root = pathlib.Path(otbr_jax.__path__[0])
    for path in sorted(root.rglob("*.py")):
        declarations = "".join(_DECLARED.findall(path.read_text(encoding="utf-8")))
        if declarations:
            hashed.update(f"{path.relative_to(root)}\n{declarations}".encode())
    return hashed.hexdigest()


def as_json(setting: Setting) -> dict[str, Any]:
    """A setting as the index holds it."""
    if setting.rule is None:
        return {"doc": setting.doc} | ({"formerly": setting.formerly} if setting.formerly else {})
    rule = {name: value for name, value in setting.rule._asdict().items() if value != Rule._field_defaults.get(name)}
    kind = setting.kind.__name__ if setting.kind in _TYPES.values() else str(setting.kind)
    return {"kind": kind, "default": setting.default, **rule}


def with_values(settings: Iterable[Setting], values: Mapping[str, Any]) -> list[Setting]:
    """The settings with other defaults, by name."""
    return [each._replace(default=_value(values.get(each.name, each.default))) for each in settings]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dictionary by dotted names."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return result


def nested(settings: Iterable[Setting]) -> dict[str, Any]:
    """The values of settings as a nested dictionary."""
    result: dict[str, Any] = {}
    for each in settings:
        if each.words:
            *groups, last = each.name.split(".")
            functools.reduce(lambda place, group: place.setdefault(group, {}), groups, result)[last] = each.default
    return result


def _setting(name: str, values: Mapping[str, Any]) -> Setting:
    rest: dict[str, Any] = {key: _value(value) for key, value in values.items()}
    if "kind" not in rest:
        return Setting(name, "", None, rest["doc"], formerly=rest.get("formerly", ()))
    kind, default = _type(rest.pop("kind")), rest.pop("default")
    rule = Rule(**rest)
    return Setting(name, in_words(kind, rule), default, rule.doc, kind, rule, rule.formerly)


def _type(name: str) -> Any:
    """A type by its name, such as `int` or `tuple[int, ...]`."""
    items = re.fullmatch(r"tuple\[(.*)\]", name)
    return tuple[tuple(_TYPES[item] for item in items[1].split(", "))] if items else _TYPES[name]  # type: ignore[misc]


def _value(value: Any) -> Any:
    """A value from JSON, which has lists where settings have tuples."""
    return tuple(value) if isinstance(value, list) else value
