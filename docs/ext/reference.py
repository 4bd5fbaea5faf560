"""The reference, written from the packages: nothing here names a module, a defence or a detector.

`pages()` has a page for each package, one for what `import otbr_jax` gives, and one for what is chosen by name.
"""

from __future__ import annotations

import importlib
import inspect
import pathlib
import pkgutil
import types
from collections.abc import Iterator
from typing import Any

PACKAGE = "otbr_jax"
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def modules() -> list[str]:
    """The dotted names of all modules, those of packages left out."""
    package = importlib.import_module(PACKAGE)
    return sorted(each.name for each in pkgutil.walk_packages(package.__path__, f"{PACKAGE}.") if not each.ispkg)


def public(module: types.ModuleType) -> dict[str, Any]:
    """The functions and classes that a module defines and that are for others: `{name: object}`."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isroutine(value))
        and getattr(value, "__module__", None) == module.__name__
    }


def exported() -> dict[str, Any]:
    """What `import otbr_jax` gives, by name."""
    package = importlib.import_module(PACKAGE)
    return {name: getattr(package, name) for name in sorted(package.__all__)}


def pages() -> dict[str, str]:
    """`{page: Markdown}`: the reference, page by page."""
    groups: dict[str, list[str]] = {}
    for name in modules():
        groups.setdefault(_group(name), []).append(name)
    written = {group or "nouns": _page(group, names) for group, names in groups.items()}
    return written | {"public_names": _public_names(), "by_name": _by_name()}


def _group(module: str) -> str:
    """The package right below `otbr_jax` that a module is of; empty for those of `otbr_jax` itself."""
    package, _, name = module.removeprefix(f"{PACKAGE}.").partition(".")
    return package if name else ""


def _page(group: str, names: list[str]) -> str:
    package = f"{PACKAGE}.{group}" if group else PACKAGE
    title = f"`{package}`" if group else f"Modules of `{PACKAGE}` itself"
    parts = [f"# {title}\n", _first(importlib.import_module(package)) + "\n"]
    for name in names:
        parts.append(f"## {name.removeprefix(f'{package}.')}\n")
        parts.append(f"```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```\n")
    return "\n".join(parts)


def _public_names() -> str:
    lines = [f"# What `import {PACKAGE}` gives\n", "| name | what it is |", "|---|---|"]
    for name, value in exported().items():
        shown = f"`{name}`"
        if getattr(value, "__module__", "").startswith(f"{PACKAGE}.") and hasattr(value, "__qualname__"):
            shown = f"{{py:obj}}`{name} <{value.__module__}.{value.__qualname__}>`"
        lines.append(f"| {shown} | {_cell(_first(value) if shown[0] == '{' else '')} |")
    return "\n".join([*lines, ""])


def values() -> dict[type, dict[str, tuple[str, Any]]]:
    """Everything that is chosen by name, by its kind: `{class: {name: (module, value)}}`.

    A constant counts if its value has a `name` and a class of the same package, as `DEFENSE = Defense("clp", ...)`;
    of `contrib`, if it is called like its class.
    """
    by_type: dict[type, dict[str, tuple[str, Any]]] = {}
    for name in modules():
        module = importlib.import_module(name)
        for constant, value in vars(module).items():
            kind = type(value)
            if not constant.isupper() or not isinstance(getattr(value, "name", None), str):
                continue
            own = _group(getattr(kind, "__module__", "")) == _group(name) != ""
            if own or (_group(name) == "contrib" and constant == kind.__name__.upper()):
                by_type.setdefault(kind, {}).setdefault(value.name, (name, value))
    return by_type


def _by_name() -> str:
    """A list for each kind of thing that is chosen by name; the page of a defence is linked where one is written."""
    parts = [
        "# Everything by name\n",
        "What settings and flags may name. A new file in its package appears here by itself.\n",
    ]
    for kind, entries in sorted(values().items(), key=lambda item: item[0].__name__):
        parts += [f"## {kind.__name__}\n", _first(kind) + "\n", *_listed(entries), ""]
    return "\n".join(parts)


def _listed(entries: dict[str, tuple[str, Any]]) -> Iterator[str]:
    needs = all(isinstance(getattr(value, "data", None), str) for _, value in entries.values())
    yield "| name | needs | what it is |" if needs else "| name | what it is |"
    yield "|---|---|---|" if needs else "|---|---|"
    for name, (module, value) in sorted(entries.items()):
        cells = [
            _linked(name, module),
            *([value.data] if needs else []),
            _cell(_first(importlib.import_module(module))),
        ]
        yield f"| {' | '.join(cells)} |"


def _linked(name: str, module: str) -> str:
    own = ROOT / "docs" / "defences" / f"{name}.md"
    if _group(module) in ("defenses", "contrib") and own.exists():
        return f"[`{name}`](../../defences/{name}.md)"
    return f"{{py:mod}}`{name} <{module}>`"


def _first(value: Any) -> str:
    """The first paragraph of a docstring, in a line."""
    return " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].removesuffix("::").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def undocumented() -> Iterator[str]:
    """The public names without a docstring, which autodoc would leave out."""
    for name in modules():
        for own, value in public(importlib.import_module(name)).items():
            if not inspect.getdoc(value):
                yield f"{name}.{own}"
