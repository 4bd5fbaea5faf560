"""All defences: each module of this package, or of `contrib`, with a `DEFENSE` in it is one."""

from __future__ import annotations

import importlib
import pkgutil

from otbr_jax import contrib, defenses
from otbr_jax.defenses.defense import Defense
from otbr_jax.errors import InputError


def _discover() -> dict[str, Defense]:
    packages = (defenses, contrib)
    files = [(file.name, package.__name__) for package in packages for file in pkgutil.iter_modules(package.__path__)]
    others = ("registry", "defend")  # which import all the others
    modules = [importlib.import_module(f"{package}.{name}") for name, package in sorted(files) if name not in others]
    return {module.DEFENSE.name: module.DEFENSE for module in modules if hasattr(module, "DEFENSE")}


DEFENSES: dict[str, Defense] = _discover()
"""All defences by name."""


def defense(name: str) -> Defense:
    """The defence of that name; raises InputError if there is none."""
    if name not in DEFENSES:
        raise InputError(f"defense: expected one of {[*DEFENSES]}, found {name!r}")
    return DEFENSES[name]
