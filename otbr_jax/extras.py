"""Optional packages, which only parts of otbr_jax need; the extras of its installation install them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from otbr_jax.errors import InputError

EXTRAS: Mapping[str, tuple[str, str]] = {
    "PIL": ("pillow", "data"),
    "sklearn": ("scikit-learn", "data"),
    "tensorflow_datasets": ("tensorflow-datasets", "data"),
    "dm_pix": ("dm-pix", "report"),
    "jinja2": ("jinja2", "report"),
    "markupsafe": ("markupsafe", "report"),
    "matplotlib": ("matplotlib", "report"),
    "tabulate": ("tabulate", "report"),
    "ot": ("POT", "exact"),
    "safetensors": ("safetensors", "torch"),
    "torch": ("torch", "torch"),
}
"""Packages by the names of their imports, each with its name and its extra in `setup.cfg`."""


def needed(module: str, *, what: str) -> Any:
    """Imports a module of a package of `EXTRAS`.

    Args:
      module: such as `PIL.Image`.
      what: what needs it, for the message.

    Raises:
      InputError: if it is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package, extra = EXTRAS[module.partition(".")[0]]
        raise InputError(f"{what} needs the package {package}: pip install -e '.[{extra}]'") from None
