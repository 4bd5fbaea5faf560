"""A hash of the source that computes a stage: the module it is written in, and all that this one imports."""

from __future__ import annotations

import ast
import functools
import hashlib
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT.name

SHOWING = ("report", "interop")
"""Rooms that only show or exchange results: a change of theirs leaves every stage as it is."""


@functools.cache
def code_digest(module: str) -> str:
    """A hash of a module's source and of what it imports, directly or not, from this package.

    A stage does not outlive a change of the code that computed it, and outlives every other: its row of results may
    carry the commit of today, and a victim is not trained anew for a change of a defence.

    Args:
      module: its dotted name; for one outside this package, which may call anything, the whole package counts.
    """
    modules = closure(module) if _file(module) else _all()
    digest = hashlib.sha256()
    for name in sorted(modules):
        file = _file(name)
        assert file is not None
        digest.update(f"{name}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def closure(module: str) -> frozenset[str]:
    """Dotted names of a module of this package and of all that it imports from it, without `SHOWING`."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found and not _shows(name):
            found.add(name)
            waiting += _imports(name)
    return frozenset(found)


def _all() -> frozenset[str]:
    files = (path.relative_to(ROOT.parent).with_suffix("") for path in ROOT.rglob("*.py"))
    names = (".".join(file.parts).removesuffix(".__init__") for file in files)
    return frozenset(name for name in names if not _shows(name))


def _shows(name: str) -> bool:
    return len(parts := name.split(".")) > 1 and parts[1] in SHOWING


def _imports(name: str) -> list[str]:
    """Modules of this package that a module imports, inside functions too."""
    file = _file(name)
    assert file is not None
    found = []
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [each if _file(each) else node.module for each in inside]
    return [each for each in found if _file(each)]


def _file(name: str) -> pathlib.Path | None:
    """The file of a module of this package; None for any other."""
    first, *rest = name.split(".")
    if first != PACKAGE:
        return None
    path = ROOT.joinpath(*rest)
    return next((file for file in (path.with_name(f"{path.name}.py"), path / "__init__.py") if file.is_file()), None)
