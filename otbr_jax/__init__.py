"""Repair of backdoored neural networks in JAX.

Pure functions over a `Network` (two functions) and its variables; see `otbr_jax.defenses` for whole methods, and
`otbr_jax.studies` for what runs, saves and measures them.

The public names stand in `__init__.pyi`, for type checkers too. Each is imported where it is first used, so that
`otbr_jax.settings` and `otbr_jax.errors` come without JAX.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from typing import Any

_HOMES = {
    alias.name: node.module
    for node in ast.parse(pkgutil.get_data(__name__, "__init__.pyi") or b"").body
    if isinstance(node, ast.ImportFrom) and node.module
    for alias in node.names
}
"""The module of each public name."""
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
