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
    groups: dict[str, dict[str, Any]] = {}
    kinds: dict[str, dict[str, list[str]]] = {}
    for kind, build in KINDS.items():
        kinds[kind] = {}
        for variant, values in build().variants.items():
            declared = _groups(describe(build().Config, values))
            kinds[kind][variant] = [_shared(groups, group, f"{kind} {variant}".strip()) for group in declared]
    whole = Index(index.digest(), {name: names() for name, names in CHOICES.items()}, groups, kinds, {})
    return _lines(whole._replace(files=dict(_files(whole))))


def _groups(settings: Sequence[Setting]) -> Iterator[dict[str, Any]]:
    """The declarations of the settings in no group, and of each group."""
    group: dict[str, Any] = {}
    for each in settings:
        if not each.words and "." not in each.name and group:
            yield group
            group = {}
        group[each.name] = index.as_json(each)
    yield group


def _shared(groups: dict[str, dict[str, Any]], group: dict[str, Any], owner: str) -> str:
    """The name under which such a group is held; several kinds of settings share one."""
    first = next(iter(group))
    name = first if "kind" not in group[first] else ""
    if groups.setdefault(name, group) != group:
        name = f"{name} ({owner})"
        groups[name] = group
    return name


def _files(whole: Index) -> Iterator[tuple[str, File]]:
    """The files of `configs/` whose `get_config` needs no argument."""
    for path in sorted(index.CONFIGS.rglob("*.py")):
        get_config: Callable[[], Any] | None = runpy.run_path(str(path)).get("get_config")
        if get_config is None or any(
            each.default is each.empty for each in inspect.signature(get_config).parameters.values()
        ):
            continue
        values = index.flat(get_config().to_dict())
        for kind, variants in whole.kinds.items():
            variant = str(values.get("defense", ""))
            settings = whole.settings(kind, variant) if variant in variants else []
            if {each.name for each in settings if each.words} == {*values}:
                changed = {
                    each.name: values[each.name]
                    for each in settings
                    if each.words and values[each.name] != each.default
                }
                yield path.relative_to(index.CONFIGS).as_posix(), File(kind, variant, changed)


def _lines(whole: Index) -> str:
    """JSON with a line for each small value, so that a change is a change of one line."""

    def lines(value: Any, depth: int) -> str:
        if not depth or not isinstance(value, Mapping) or not value:
            return json.dumps(value)
        inner = ",\n".join(f"{json.dumps(key)}: {lines(each, depth - 1)}" for key, each in value.items())
        return f"{{\n{inner}\n}}"

    return lines(whole._asdict(), 3) + "\n"
