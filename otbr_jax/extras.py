"""Packages that only parts of otbr_jax need; the extras of its installation bring them."""

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
"""Packages as they are imported, each with its name and the extra that brings it, as `setup.cfg` says."""


def needed(module: str, *, what: str) -> Any:
    """The module of that name, of a package of `EXTRAS`.

    Args:
      module: such as `PIL.Image`.
      what: what it is needed for, for the message.

    Raises:
      InputError: if it is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package, extra = EXTRAS[module.partition(".")[0]]
        raise InputError(f"{what} needs the package {package}: pip install -e '.[{extra}]'") from None
