"""Stand-ins for the classes and functions that a pickle asks for: those are never imported and never called.

A checkpoint is more than weights: settings, metrics, paths, an optimizer, a whole module. Every name that PyTorch's
weights-only unpickler does not allow becomes a class that only stores its arguments. So any file can be read, and
nothing in it is executed. Names that only an attack needs are refused all the same, to warn people who may open the
file by other means.
"""

from __future__ import annotations

import argparse
import builtins
import collections
import datetime
import decimal
import fractions
import itertools
import pathlib
import types
from collections.abc import Iterator
from typing import Any

import numpy as np

from otbr_jax.errors import InputError

_ATTACKS = frozenset(
    "os posix nt sys subprocess importlib runpy shutil socket pty ctypes code codeop webbrowser marshal timeit pdb bdb "
    "cProfile profile trace asyncio http urllib requests httpx aiohttp operator pip ensurepip venv idlelib lib2to3 "
    "doctest multiprocessing threading signal gc inspect pickle _pickle dill cloudpickle joblib torch.hub "
    "torch.utils.cpp_extension torch.serialization numpy.testing "
    "commands popen2".split()  # of Python 2
)
_DATA_OF_BUILTINS = frozenset(
    "set frozenset bytearray bytes complex slice range dict list tuple int float str bool object type NoneType".split()
)
_LIKE_DICTIONARIES = ("dict", "Dict", "CfgNode", "Box")  # endings of names
_LIKE_LISTS = ("list", "List")
_PLAIN_BUILTINS = ("set", "frozenset", "range", "slice", "complex", "bytes", "bytearray")
_PATHS = ("PosixPath", "WindowsPath", "Path", "PurePosixPath", "PureWindowsPath", "PurePath")
_DATES = ("date", "time", "datetime", "timedelta")


class Foreign:
    """Stands in for an object of a class that the file names.

    Attributes:
      what: the class's full name.
      arguments: the arguments of its constructor.
      state: its pickled state; None without.
    """

    what: str = ""
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> Foreign:
        """Stores the arguments."""
        self = object.__new__(cls)
        self.arguments, self.state = arguments, None
        return self

    def __setstate__(self, state: Any) -> None:
        """Stores the state."""
        self.state = state


class _LikeDictionary:
    """Stands in for a subclass of dict; the unpickler puts its entries into an OrderedDict."""

    def __new__(cls, *_: Any) -> Any:
        return collections.OrderedDict()


class _LikeList:
    """Stands in for a subclass of list."""

    def __new__(cls, *_: Any) -> Any:
        return []


def stand_in(name: str) -> type:
    """A new class to stand in for the one of this full name."""
    parent: type = Foreign
    if not name.startswith("builtins."):
        parent = _LikeDictionary if name.endswith(_LIKE_DICTIONARIES) else parent
        parent = _LikeList if name.endswith(_LIKE_LISTS) else parent
    return type("StandIn", (parent,), {"what": name})


def is_an_attack(name: str) -> bool:
    """Whether a checkpoint can only ask for this name in order to execute something."""
    module, _, last = name.rpartition(".")
    if module in ("builtins", "__builtin__"):
        return last not in _DATA_OF_BUILTINS
    parts = module.split(".")
    return any(".".join(parts[:depth]) in _ATTACKS for depth in range(1, len(parts) + 1))


def module_tensors(value: Foreign) -> dict[str, Any] | None:
    """The state dict of a pickled `torch.nn.Module`, without running it; None if the object is no module."""
    if not _is_module(value):
        return None
    return dict(itertools.islice(_of_module(value, "", 0), _MOST))


def _is_module(value: Any) -> bool:
    return isinstance(value, Foreign) and isinstance(value.state, dict) and "_parameters" in value.state


def _of_module(module: Foreign, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    if depth > _DEEPEST:
        return
    transient = module.state.get("_non_persistent_buffers_set") or ()
    for group in ("_parameters", "_buffers"):
        for name, value in _entries(module.state.get(group)):
            if value is not None and not (group == "_buffers" and name in transient):
                yield prefix + name, value
    for name, child in _entries(module.state.get("_modules")):
        if _is_module(child):
            yield from _of_module(child, f"{prefix}{name}.", depth + 1)


def _entries(value: Any) -> list[tuple[str, Any]]:
    """The entries of a dictionary, without calling methods that a pickle may have replaced."""
    return [(key, entry) for key, entry in dict.items(value) if isinstance(key, str)] if isinstance(value, dict) else []


_DEEPEST = 64
_MOST = 100_000  # tensors of a module
_LEFT = object()


def to_plain_data(content: Any, left_out: list[str]) -> Any:
    """Content that can be written: plain data in place of stand-ins for such data, and no other stand-ins.

    Args:
      content: nested dictionaries, lists and tuples of tensors and plain values, and `Foreign`.
      left_out: gets the names of entries that cannot be written, since they need other people's code.

    Returns:
      The same without those entries.
    """
    written = _plain(content, (), left_out, {})
    return {} if written is _LEFT else written


def _plain(value: Any, path: tuple[str, ...], left_out: list[str], known: dict[int, Any]) -> Any:
    """`known`: the results by the `id` of objects, since a pickle may hold one object in very many places."""
    if isinstance(value, dict | list | tuple | Foreign):
        if id(value) not in known:
            known[id(value)] = _LEFT  # in itself it is left out
            known[id(value)] = _plain_of(value, path, left_out, known)
        return known[id(value)]
    return _plain_of(value, path, left_out, known)


def _plain_of(value: Any, path: tuple[str, ...], left_out: list[str], known: dict[int, Any]) -> Any:
    if isinstance(value, Foreign):
        try:
            return _plain_data(value)
        except (ValueError, TypeError, KeyError, AttributeError, InputError):
            left_out.append(f"{'/'.join(path) or 'the file'} ({value.what})")
            return _LEFT
    if isinstance(value, type) and issubclass(value, Foreign | _LikeDictionary | _LikeList):
        left_out.append(f"{'/'.join(path) or 'the file'} ({getattr(value, 'what', '')})")
        return _LEFT
    if len(path) > _DEEPEST:
        return _LEFT
    if isinstance(value, dict):
        entries = ((key, _plain(entry, (*path, str(key)), left_out, known)) for key, entry in dict.items(value))
        kept = [(key, entry) for key, entry in entries if entry is not _LEFT]
        return collections.OrderedDict(kept) if isinstance(value, collections.OrderedDict) else dict(kept)
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        kept_values = [_plain(entry, (*path, str(place)), left_out, known) for place, entry in enumerate(value)]
        return _LEFT if any(entry is _LEFT for entry in kept_values) else type(value)(kept_values)
    return value


def _plain_data(value: Foreign) -> Any:
    """The object itself, for classes of plain data; raises ValueError for others."""
    module, _, name = value.what.rpartition(".")
    if value.what == "argparse.Namespace":
        return argparse.Namespace(**_plain_state(value))
    if value.what == "types.SimpleNamespace":
        return types.SimpleNamespace(**_plain_state(value))
    if module.startswith("pathlib") and name in _PATHS:
        parts = [part for part in value.arguments if isinstance(part, str)]
        return pathlib.PurePath(*parts) if name.startswith("Pure") else pathlib.Path(*parts)
    if module == "datetime" and name in (*_DATES, "timezone"):
        return getattr(datetime, name)(*_plain_arguments(value))
    if module == "builtins" and name in _PLAIN_BUILTINS:
        arguments = _plain_arguments(value)
        if name not in ("range", "slice", "complex") and not all(
            isinstance(part, list | str | bytes) for part in arguments
        ):
            raise ValueError(value.what)  # bytes(10**12)
        return getattr(builtins, name)(*arguments)
    if value.what in ("decimal.Decimal", "fractions.Fraction") and isinstance(value.arguments[0], str):
        return (decimal.Decimal if name == "Decimal" else fractions.Fraction)(value.arguments[0][:1000])
    if module.startswith("numpy"):
        return _numpy(value, name)
    raise ValueError(value.what)


def _plain_arguments(value: Foreign) -> list[Any]:
    left: list[str] = []
    arguments = _plain(list(value.arguments), (), left, {})
    if left or arguments is _LEFT:
        raise ValueError(value.what)
    return list(arguments)


def _plain_state(value: Foreign) -> dict[str, Any]:
    left: list[str] = []
    state = _plain(value.state or {}, (), left, {})
    if left or not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise ValueError(value.what)
    return dict(state)


def _numpy(value: Foreign, name: str) -> Any:
    if name == "dtype":
        return _dtype(value)
    if name == "scalar":
        kind, content = value.arguments
        return np.frombuffer(content, _dtype(kind), 1)[0]
    if name == "_reconstruct":
        _, shape, kind, by_columns, content = value.state
        flat = np.frombuffer(content, _dtype(kind))
        return flat.reshape(shape, order="F" if by_columns else "C").copy()
    raise ValueError(value.what)


def _dtype(value: Any) -> np.dtype:
    letters = value.arguments[0]
    kind = np.dtype(letters if isinstance(letters, str) else letters.decode())
    if kind.hasobject:
        raise ValueError(value.what)
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "="
    return kind.newbyteorder("<" if order == "<" else ">" if order == ">" else "=")
