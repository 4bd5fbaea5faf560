"""What a stage's value depends on, as hashes: the code that computes it, the network, the settings, the versions."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import json
import pathlib
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.graph.evaluate import parts
from otbr_jax.plan import Setup
from otbr_jax.types import Network, Variables, named_leaves

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT.name

SHOWING = ("report", "interop")
"""Rooms that only show or exchange results: a change of theirs leaves every stage as it is."""

PACKAGES = ("otbr_jax", "jax", "jaxlib", "flax", "optax", "ott-jax", "orbax-checkpoint", "numpy")
COMPUTING = ("jax", "jaxlib", "optax", "ott-jax")
"""Packages whose versions change numbers; a network's own library shows in what it traces to."""


def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that results depend on."""
    return {name: _version(name) for name in PACKAGES}


_version = functools.cache(importlib.metadata.version)  # which reads and parses a file


def computing_versions() -> dict[str, str]:
    """Those of the versions that are in every identity."""
    found = versions()
    return {name: found[name] for name in COMPUTING}


def content_digest(tree: Any) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of all arrays of a pytree."""
    digest = hashlib.sha256()
    for name, leaf in sorted(named_leaves(tree).items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.view(np.uint8).data)
    return digest.hexdigest()


def plain(settings: Any) -> Any:
    """Settings as plain JSON values: dataclasses and named tuples as mappings; a new field is a new identity."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return {field.name: plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)}
    if isinstance(settings, Mapping):
        return {str(name): plain(value) for name, value in settings.items()}
    if isinstance(settings, tuple) and hasattr(settings, "_fields"):
        return {name: plain(value) for name, value in zip(settings._fields, settings, strict=True)}
    if isinstance(settings, (tuple, list)):
        return [plain(value) for value in settings]
    return json.loads(json.dumps(settings))


def setup_digest(setup: Setup, like: Variables) -> str:
    """A hash of all that a step may read of its setup: what the network computes, its layers, how images are varied.

    Args:
      setup: the setup.
      like: the network's variables, or their shapes.
    """
    raw = jax.ShapeDtypeStruct((2, *setup.network.image_shape), jnp.uint8)
    parts = [
        network_digest(setup.network, like),
        program_digest(setup.augment, raw, jax.random.key(0)),
        plain(setup.layers),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def network_digest(network: Network, like: Variables) -> str:
    """A hash of what a network computes, in evaluation and in training mode, and of how it prepares images."""
    images = jax.ShapeDtypeStruct((2, *network.image_shape), jnp.float32)
    raw = jax.ShapeDtypeStruct((2, *network.image_shape), jnp.uint8)
    programs = ((network.apply, like, images), (network.train, like, images))
    preparing = ((network.prepare, images), (network.prepare, raw))
    parts = [network.image_shape, network.num_classes, *(program_digest(*each) for each in (*programs, *preparing))]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def program_digest(function: Callable[..., Any], *inputs: Any) -> str:
    """A hash of what a function computes of inputs like these: its jaxpr, and every constant that it closes over."""
    closed = jax.make_jaxpr(function)(*inputs)
    text = closed.pretty_print(use_color=False)  # `str` has colours where it is printed on a terminal
    digest = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", text).encode())
    for constant in _constants(closed):
        array = np.ascontiguousarray(constant)
        digest.update(f"{array.dtype} {array.shape}\n".encode() + array.tobytes())
    return digest.hexdigest()


def _constants(program: Any) -> list[Any]:
    """The constants of a jaxpr and of the jaxprs inside it, in order."""
    found = [value for value in getattr(program, "consts", ()) if _is_array(value)]
    for equation in getattr(program, "jaxpr", program).eqns:
        found += [atom.val for atom in equation.invars if hasattr(atom, "val") and _is_array(atom.val)]
        for part in parts(equation):
            found += _constants(part)
    return found


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and not jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended)


@functools.cache
def code_digest(module: str) -> str:
    """A hash of a module's code and of what it imports, directly or not, from this package; comments do not count.

    A stage does not outlive a change of the code that computed it, and outlives every other: its row of results may
    carry the commit of today, and a victim is not trained anew for a change of a defence.

    Args:
      module: its dotted name; for one outside this package, which may call anything, the whole package counts too.
    """
    modules = closure(module) if _file(module) else _all()
    digest = hashlib.sha256()
    for name in sorted(modules):
        file = _file(name)
        assert file is not None
        digest.update(f"{name}\n{_code(file.read_bytes())}".encode())
    if not _file(module) and (own := sys.modules.get(module)) is not None:
        with contextlib.suppress(OSError, TypeError):  # nobody can say what code of a terminal is
            digest.update(_code(inspect.getsource(own)).encode())
    return digest.hexdigest()


@functools.cache
def _code(source: str | bytes) -> str:
    """A module's syntax tree without docstrings: what it does, however it is written and explained."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_remark(part)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_remark(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


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


@functools.cache
def package_digest() -> str:
    """A hash of the code of the whole package."""
    digest = hashlib.sha256()
    for name in sorted(_all()):
        digest.update(code_digest(name).encode())
    return digest.hexdigest()


def _all() -> frozenset[str]:
    files = (path.relative_to(ROOT.parent).with_suffix("") for path in ROOT.rglob("*.py"))
    names = (".".join(file.parts).removesuffix(".__init__") for file in files)
    return frozenset(name for name in names if not _shows(name))


def _shows(name: str) -> bool:
    return len(parts := name.split(".")) > 1 and parts[1] in SHOWING


@functools.cache
def _imports(name: str) -> tuple[str, ...]:
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
    return tuple(each for each in found if _file(each))


def _file(name: str) -> pathlib.Path | None:
    """The file of a module of this package; None for any other."""
    first, *rest = name.split(".")
    if first != PACKAGE:
        return None
    path = ROOT.joinpath(*rest)
    return next((file for file in (path.with_name(f"{path.name}.py"), path / "__init__.py") if file.is_file()), None)
