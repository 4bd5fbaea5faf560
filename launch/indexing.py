"""How `index.json` is made from the code; see `launch.index`."""

from __future__ import annotations

import inspect
import json
import runpy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from launch import index
from launch.index import File, Index
from launch.kinds import CHOICES, KINDS
from otbr_jax.settings import Setting, describe


def text() -> str:
    """The file as the code says: a line for each setting."""
    parts: dict[str, dict[str, Any]] = {}
    kinds: dict[str, dict[str, list[str]]] = {}
    for kind, made in KINDS.items():
        kinds[kind] = {}
        for variant, values in made().variants.items():
            found = _parts(describe(made().Config, values))
            kinds[kind][variant] = [_shared(parts, part, f"{kind} {variant}".strip()) for part in found]
    whole = Index(index.digest(), {name: names() for name, names in CHOICES.items()}, parts, kinds, {})
    return _lines(whole._replace(files=dict(_files(whole))))


def _parts(settings: Sequence[Setting]) -> Iterator[dict[str, Any]]:
    """The declarations of the settings in no group, and of each group."""
    part: dict[str, Any] = {}
    for each in settings:
        if not each.words and "." not in each.name and part:
            yield part
            part = {}
        part[each.name] = index.declared(each)
    yield part


def _shared(parts: dict[str, dict[str, Any]], part: dict[str, Any], owner: str) -> str:
    """The name under which such a part is held; several kinds of settings share one."""
    first = next(iter(part))
    name = first if "kind" not in part[first] else ""
    if parts.setdefault(name, part) != part:
        name = f"{name} ({owner})"
        parts[name] = part
    return name


def _files(found: Index) -> Iterator[tuple[str, File]]:
    """The files of `configs/` that give settings when they are asked for nothing."""
    for path in sorted(index.CONFIGS.rglob("*.py")):
        get_config: Callable[[], Any] | None = runpy.run_path(str(path)).get("get_config")
        if get_config is None or any(
            each.default is each.empty for each in inspect.signature(get_config).parameters.values()
        ):
            continue
        values = index.flat(get_config().to_dict())
        for kind, variants in found.kinds.items():
            variant = str(values.get("defense", ""))
            settings = found.settings(kind, variant) if variant in variants else []
            if {each.name for each in settings if each.words} == {*values}:
                changed = {
                    each.name: values[each.name]
                    for each in settings
                    if each.words and values[each.name] != each.default
                }
                yield path.relative_to(index.CONFIGS).as_posix(), File(kind, variant, changed)


def _lines(found: Index) -> str:
    """JSON with a line for what is small, so that a change is a change of a line."""

    def lines(value: Any, depth: int) -> str:
        if not depth or not isinstance(value, Mapping) or not value:
            return json.dumps(value)
        inner = ",\n".join(f"{json.dumps(key)}: {lines(each, depth - 1)}" for key, each in value.items())
        return f"{{\n{inner}\n}}"

    return lines(found._asdict(), 3) + "\n"
