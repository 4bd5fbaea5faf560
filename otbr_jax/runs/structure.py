"""The structure of a stage's value as JSON, so that a stage is reloaded without tracing the step that computed it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def describe(value: Any) -> Any:
    """Dicts, lists, tuples, NamedTuples and arrays as plain JSON values; None if a value holds anything else."""
    try:
        return _describe(value)
    except TypeError:
        return None


def rebuild(description: Any) -> Any:
    """The structure of a description, with a `jax.ShapeDtypeStruct` for each array.

    No module is imported: the module of a NamedTuple has to be imported already, as for a step that is about to run.

    Raises ValueError if the description is invalid.
    """
    try:
        return _rebuild(description)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"no structure of a value: {error!r}") from None


def _describe(value: Any) -> Any:
    if value is None:
        return {"none": True}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        kind = type(value)
        if getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is not kind:
            raise TypeError(f"{kind} cannot be found by its name")
        fields = {name: _describe(field) for name, field in zip(value._fields, value, strict=True)}
        return {"class": [kind.__module__, kind.__qualname__], "fields": fields}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_describe(each) for each in value]}
    if type(value) is dict:
        if not all(isinstance(name, str) for name in value):
            raise TypeError("keys that are no text")
        return {"dict": {name: _describe(each) for name, each in value.items()}}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return {"shape": list(value.shape), "dtype": str(value.dtype)}
    raise TypeError(f"{type(value)} has no plain description")


def _rebuild(description: Mapping[str, Any]) -> Any:
    if "none" in description:
        return None
    if "class" in description:
        module, name = description["class"]
        kind = getattr(sys.modules[module], name)
        if not (isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")):
            raise ValueError(f"{module}.{name} is no NamedTuple")
        return kind(**{field: _rebuild(each) for field, each in description["fields"].items()})
    if "dict" in description:
        return {name: _rebuild(each) for name, each in description["dict"].items()}
    for kind in (list, tuple):
        if kind.__name__ in description:
            return kind(_rebuild(each) for each in description[kind.__name__])
    return jax.ShapeDtypeStruct(tuple(description["shape"]), np.dtype(description["dtype"]))
