"""A hash of all code that a computation can reach.

The code of a function is what it executes: not its comments, docstrings and annotations, and not the names of its
locals. The walk goes from a value to every function that it holds (fields, arguments of a `partial`, closures,
defaults), and from a function to everything that its code names: functions, classes and constants of this package and
of the user's modules. Libraries count by their versions, see `identity.computing_versions`.

An argument of a function may be an object with methods that no code names. Therefore annotations are followed too:
those of the arguments of `entry` functions, and those of the fields of classes.
"""

from __future__ import annotations

import bisect
import dataclasses
import dis
import enum
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import pathlib
import re
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

PACKAGE = __name__.partition(".")[0]
_INSTALLED = tuple(
    {
        str(pathlib.Path(path).resolve())
        for name, path in sysconfig.get_paths().items()
        if name.endswith(("lib", "stdlib"))
    }
)
_NOT_CODE = frozenset("MAKE_CELL COPY_FREE_VARS LOAD_CLOSURE CACHE RESUME NOP EXTENDED_ARG PRECALL".split())
"""Instructions without effect, or with no effect but the order of cells, which depends on their names."""
_JUMPS = frozenset((*dis.hasjrel, *dis.hasjabs))
_ALWAYS = frozenset(("JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT"))
_DIRECTION = re.compile("_(FORWARD|BACKWARD)(?=_|$)")
_ATTRIBUTES = frozenset(("LOAD_ATTR", "LOAD_METHOD"))
_GLOBALS = frozenset(("LOAD_GLOBAL", "LOAD_NAME"))
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), range, pathlib.PurePath, np.dtype, re.Pattern)
_OF_CLASSES = frozenset("__module__ __doc__ __dict__ __weakref__ __annotations__ __qualname__ __slots__".split())
_OF_FIELDS = ("_abc_", "_field", "__dataclass", "__match_args__", "__orig_bases__", "__parameters__")
_LIBRARIES = frozenset("jax jaxlib numpy flax optax ott orbax haiku equinox".split()) | sys.stdlib_module_names


def code_digest(*values: Any, entry: Iterable[Callable[..., Any]] = ()) -> str:
    """A hash of the code that values can reach: functions, classes, and anything that holds them.

    Args:
      values: such as a step, a function, or a `partial` of one. Constants that they hold count by their value.
      entry: functions among them that are called from elsewhere, so that the types of their arguments count.
    """
    walk = _Walk({_top(_module_of(function)) for function in entry} - _LIBRARIES)
    tokens = [walk.token(value) for value in values]
    for function in entry:
        walk.annotations(_unwrapped(function))
    walk.finish()
    return hashlib.sha256("\n".join([*tokens, *sorted(walk.entries)]).encode()).hexdigest()


class _Walk:
    """The state of the walk: a line for each visited function and class, and the values that wait for a visit."""

    def __init__(self, own: set[str]) -> None:
        self.own = own
        self.entries: set[str] = set()
        self.waiting: list[tuple[Any, bool]] = []
        self.visited: set[tuple[Any, bool]] = set()
        self.open: set[int] = set()
        self.known: dict[int, tuple[Any, str]] = {}  # by id; the values are kept, so that no id is used twice

    def finish(self) -> None:
        """Visits everything that waits."""
        while self.waiting:
            value, constructed = self.waiting.pop()
            if (value, constructed) not in self.visited:
                self.visited.add((value, constructed))
                self._class(value, constructed=constructed) if isinstance(value, type) else self.token(value)

    def in_scope(self, module: str) -> bool:
        """Whether a module is one of this package or the user's own."""
        return _top(module) in self.own or _is_own(_top(module))

    def later(self, value: Any, *, constructed: bool = False) -> str:
        """The name of a function or class, which is visited later."""
        self.waiting.append((value, constructed))
        return f"{value.__module__}:{value.__qualname__}"

    def token(self, value: Any) -> str:
        """A text for a value that is the same in every process."""
        if isinstance(value, enum.Enum):
            return f"{self.token(type(value))}.{value.name}"
        if isinstance(value, _PLAIN):
            return f"{type(value).__name__} {value!r}"
        if isinstance(value, jax.core.Tracer):
            return f"traced {value.aval}"
        if isinstance(value, (np.ndarray, np.generic, jax.Array)):
            return _array(value)
        if isinstance(value, type):
            return self.later(value) if self.in_scope(value.__module__) else f"{value.__module__}:{value.__qualname__}"
        if isinstance(value, types.ModuleType):
            return self._module(value)
        if id(value) in self.known:
            return self.known[id(value)][1]
        if id(value) in self.open:
            return f"again {type(value).__name__} {getattr(value, '__qualname__', '')}"
        self.open.add(id(value))
        token = self._object(value)
        self.open.remove(id(value))
        self.known[id(value)] = value, token
        return token

    def _object(self, value: Any) -> str:
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return f"{self.token(value.__func__)} of {self.token(value.__self__)}"
        if isinstance(value, functools.partial):
            return f"partial {self._all((value.func, value.args, value.keywords))}"
        if isinstance(value, Mapping):
            return f"{{{self._all(part for item in value.items() for part in item)}}}"
        if isinstance(value, (set, frozenset)):
            return f"set {sorted(self.token(one) for one in value)}"
        if isinstance(value, (tuple, list)):
            kind = self.token(type(value)) if hasattr(value, "_fields") else type(value).__name__
            return f"{kind} {self._all(value)}"
        if isinstance(value, (property, functools.cached_property, staticmethod, classmethod)):
            inner = [getattr(value, name, None) for name in ("fget", "fset", "func", "__func__")]
            return f"{type(value).__name__} {self._all(inner)}"
        name = f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', '')} {type(value).__qualname__}"
        if hasattr(value, "__wrapped__"):  # of `jit`, `cache`, `custom_vjp`
            return f"{name} {self.token(value.__wrapped__)} {self._held(value, only=callable)}"
        if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value)]
            return f"{self.token(type(value))} {self._all(getattr(value, name, None) for name in names)}"
        own = type(value)
        if self.in_scope(own.__module__):
            return f"{self.token(own)} {self._held(value)}"
        return (
            f"{name} {self._held(value, only=callable)}" if callable(value) else f"{own.__module__}:{own.__qualname__}"
        )

    def _all(self, values: Iterable[Any]) -> str:
        return f"({', '.join(self.token(value) for value in values)})"

    def _held(self, value: Any, *, only: Callable[[Any], bool] = lambda value: True) -> str:
        """The attributes of an object."""
        held = {name: one for name, one in getattr(value, "__dict__", {}).items() if only(one)}
        kept = {name for name in held if isinstance(getattr(type(value), name, None), functools.cached_property)}
        return ", ".join(f"{name}={self.token(held[name])}" for name in sorted(held.keys() - kept))

    def _module(self, module: types.ModuleType) -> str:
        """A module that is a value: everything that is defined in it may be used."""
        if self.in_scope(module.__name__):
            for value in vars(module).values():
                if getattr(value, "__module__", None) == module.__name__ and hasattr(value, "__qualname__"):
                    self.later(value, constructed=True)
        return f"module {module.__name__}"

    def _function(self, function: types.FunctionType) -> str:
        name = f"{function.__module__}:{function.__qualname__}"
        code = _code(function.__code__)
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        held = [_content(cells[cell]) for cell in sorted(cells, key=lambda cell: code.names.get(cell, -1))]
        tokens = [*map(self.token, held), self.token(function.__defaults__), self.token(function.__kwdefaults__)]
        if hasattr(function, "__wrapped__"):
            tokens.append(self.token(function.__wrapped__))
        inside = self.in_scope(function.__module__)
        if inside:
            tokens += [code.text, *self._references(function, code)]
        digest = hashlib.sha256("\n".join(tokens).encode()).hexdigest()[:24]
        if inside:
            self.entries.add(f"{name} {digest}")
        return f"{name} {digest}"

    def _references(self, function: types.FunctionType, code: _Code) -> list[str]:
        """What the code of a function names: functions and classes are visited later, constants are hashed here."""
        tokens = []
        for name, *attributes in code.globals:
            if name not in function.__globals__:
                tokens.append(f"builtin {name}")
                continue
            value = function.__globals__[name]
            while isinstance(value, types.ModuleType) and attributes:
                value = getattr(value, attributes.pop(0), None)
            tokens.append(f"{name} is {self._global(value)}")
        package = str(function.__globals__.get("__package__") or "")
        for module, level, names in code.imports:
            tokens += self._imports("." * level + module, package, names)
        return tokens

    def _global(self, value: Any) -> str:
        if isinstance(value, (types.FunctionType, type)):
            module = str(value.__module__)
            if self.in_scope(module):
                return self.later(value, constructed=True)
        return self.token(value)

    def _imports(self, module: str, package: str, names: tuple[str, ...]) -> list[str]:
        """The imports inside a function."""
        try:
            name = importlib.util.resolve_name(module, package)
            if not self.in_scope(name):
                return [f"import {name}"]
            whole = importlib.import_module(name)
        except (ImportError, ValueError):
            return [f"import {module}, not here"]
        parts = [getattr(whole, each, None) or sys.modules.get(f"{name}.{each}") for each in names]
        return [f"import {name} {self._global(part)}" for part in parts or [whole]]

    def _class(self, kind: type, *, constructed: bool) -> None:
        """The methods of a class, and its constants; the defaults of its fields only if code constructs one."""
        name = f"{kind.__module__}:{kind.__qualname__}"
        if constructed:
            self.later(kind)
            fields = getattr(kind, "__dataclass_fields__", {})
            defaults = {each: (field.default, field.default_factory) for each, field in fields.items()}
            self.entries.add(f"{name} defaults {self.token(getattr(kind, '_field_defaults', defaults))}")
            return
        for base in kind.__mro__[1:]:
            if self.in_scope(base.__module__):
                self.later(base)
        hidden = _OF_CLASSES | set(getattr(kind, "_fields", ())) | set(getattr(kind, "__dataclass_fields__", ()))
        for each, value in sorted(vars(kind).items()):
            if each not in hidden and not _is_generated(each, value) and not each.startswith(_OF_FIELDS):
                self.entries.add(f"{name}.{each} {self.token(value)}")
        self.annotations(kind)

    def annotations(self, value: Any) -> None:
        """Queues the classes that the annotations of arguments or fields name."""
        module = sys.modules.get(str(getattr(value, "__module__", "")))
        for annotation in getattr(value, "__annotations__", {}).values():
            for name in re.findall(r"[\w.]+", annotation) if isinstance(annotation, str) else ():
                kind = functools.reduce(lambda of, part: getattr(of, part, None), name.split("."), module)
                if isinstance(kind, type) and self.in_scope(kind.__module__):
                    self.later(kind)
            if isinstance(annotation, type) and self.in_scope(annotation.__module__):
                self.later(annotation)


class _Code(NamedTuple):
    """What a code object does.

    Attributes:
      text: its instructions, with locals by number.
      globals: the globals that it names, each with the attributes that it reads of them.
      imports: what it imports: module, level and names.
      names: the numbers of its locals and cells.
    """

    text: str
    globals: tuple[tuple[str, ...], ...]
    imports: tuple[tuple[str, int, tuple[str, ...]], ...]
    names: dict[str, int]


@functools.cache
def _code(code: types.CodeType) -> _Code:
    return _read(code, None)


def _read(code: types.CodeType, outer: Callable[[str], str] | None) -> _Code:
    """Reads a code object, and those inside it. `outer` numbers the names of what it lies in."""
    own: dict[str, int] = {}
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    for name in arguments:
        own[name] = len(own)

    def number(name: str) -> str:
        """The number of a local in the function that it belongs to, and how far outside that is."""
        if name in code.co_freevars and outer is not None:
            return f"outer {outer(name)}"
        return str(own.setdefault(name, len(own)))

    listing = dis.Bytecode(code)
    kept = [instruction for instruction in listing if instruction.opname not in _NOT_CODE]
    offsets = [instruction.offset for instruction in kept]

    def place(offset: int) -> int:
        """The number of kept instructions before an offset; other instructions depend on line breaks."""
        return bisect.bisect_left(offsets, offset)

    def target(offset: int) -> int:
        """Where a jump ends; whether it goes through another jump depends on line breaks."""
        landing = kept[place(offset)] if place(offset) < len(kept) else None
        if landing is not None and landing.opname in _ALWAYS and landing.argval != offset:
            return target(landing.argval)
        return place(offset)

    handlers: Any = listing.exception_entries  # type: ignore[attr-defined]
    guarded = [(*map(place, (each.start, each.end, each.target)), each.depth) for each in handlers]
    lines = [f"{code.co_name if code.co_name[0] == '<' else ''} {arguments} {code.co_flags & 0xF} {guarded}"]
    names: list[tuple[str, ...]] = []
    imports: list[tuple[str, int, tuple[str, ...]]] = []
    chain: list[str] | None = None
    constants: list[Any] = []
    for instruction in kept:
        kind, value = instruction.opname, instruction.argval
        if chain is not None and kind not in _ATTRIBUTES:
            names.append(tuple(chain))
            chain = None
        if kind in _GLOBALS:
            chain = [value]
        elif chain is not None:
            chain.append(value)
        if kind == "IMPORT_NAME":
            level, listed = constants[-2:] if len(constants) > 1 else (0, None)
            imports.append((value, level, tuple(listed or ())))
        if isinstance(value, types.CodeType):
            inner = _read(value, number)
            names += inner.globals
            imports += inner.imports
            lines.append(f"{kind} {inner.text}")
            continue
        if instruction.opcode in dis.hasconst:
            constants.append(value)
            lines.append(f"{kind} {_constant(value)}")
        elif instruction.opcode in dis.haslocal or instruction.opcode in dis.hasfree:
            lines.append(f"{kind} {' '.join(map(number, value if isinstance(value, tuple) else (value,)))}")
        elif instruction.opcode in _JUMPS:
            lines.append(f"{_DIRECTION.sub('', kind)} to {target(value)}")
        else:
            lines.append(f"{kind} {instruction.arg if value is None else value}")
    if chain is not None:
        names.append(tuple(chain))
    return _Code("\n".join(lines), tuple(dict.fromkeys(names)), tuple(dict.fromkeys(imports)), own)


def _constant(value: Any) -> str:
    """A constant of a code object; sets have no order of their own."""
    if isinstance(value, frozenset):
        return f"frozenset {sorted(map(_constant, value))}"
    return f"{type(value).__name__} {value!r}"


def _array(value: Any) -> str:
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):
        value = jax.random.key_data(value)
    array = np.ascontiguousarray(value)
    return f"array {array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()[:24]}"


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _unwrapped(function: Callable[..., Any]) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.unwrap(getattr(function, "__func__", function))


def _module_of(function: Callable[..., Any]) -> str:
    return str(getattr(_unwrapped(function), "__module__", None) or type(function).__module__)


def _is_generated(name: str, value: Any) -> bool:
    """Whether a method was written by `dataclass` or `NamedTuple`."""
    function = inspect.unwrap(getattr(value, "__func__", value))
    if not (name.startswith("__") and name.endswith("__")):
        return False
    return getattr(getattr(function, "__code__", None), "co_filename", "") == "<string>"


def _top(module: str) -> str:
    return module.partition(".")[0]


@functools.cache
def _is_own(name: str) -> bool:
    """Whether a module or package is this one, or lies where no library is installed; it need not be imported yet."""
    if name in (PACKAGE, "__main__"):
        return True
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a module without a spec, such as one that was made by hand
        return False
    places = [] if spec is None else [spec.origin or "", *(spec.submodule_search_locations or ())]
    paths = [str(pathlib.Path(place).resolve()) for place in places if os.path.isabs(place)]
    return bool(paths) and not any(path.startswith(_INSTALLED) for path in paths)
