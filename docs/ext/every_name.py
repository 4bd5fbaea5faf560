"""Warns, and so fails the build, where a public name has no page.

A function or class is public if its module defines it and its name has no leading underscore. So is what
`import otbr_jax` gives. Each must be an entry of the reference.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import reference
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)


def wanted() -> Iterator[str]:
    """The dotted names that must have a page."""
    for module in reference.modules():
        yield module
        yield from (f"{module}.{name}" for name in reference.public(importlib.import_module(module)))
    for value in reference.exported().values():
        if getattr(value, "__module__", "").startswith(f"{reference.PACKAGE}.") and hasattr(value, "__qualname__"):
            yield f"{value.__module__}.{value.__qualname__}"


def _check(app: Sphinx, env: BuildEnvironment) -> None:
    known = env.domains.python_domain.objects
    for name in sorted({*wanted()} - {*known}):
        LOGGER.warning("%s: a public name without a page; does it have a docstring?", name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("env-check-consistency", _check)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
