"""Hashes of what a stage's value depends on: the code that computes it, the network, the settings, the versions."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.graph.evaluate import inner_programs
from otbr_jax.plan import Setup, Step
from otbr_jax.runs.code import code_digest
from otbr_jax.types import Network, Variables, named_leaves

ROOT = pathlib.Path(__file__).resolve().parent.parent

PACKAGES = ("otbr_jax", "jax", "jaxlib", "flax", "optax", "ott-jax", "orbax-checkpoint", "numpy")
COMPUTING = ("jax", "jaxlib", "optax", "ott-jax")
"""Packages whose versions change numbers; a network's own library shows in its jaxpr."""


def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that results depend on."""
    return {name: _version(name) for name in PACKAGES}


_version = functools.cache(importlib.metadata.version)  # it reads and parses a file


def computing_versions() -> dict[str, str]:
    """The versions that are part of every identity."""
    every = versions()
    return {name: every[name] for name in COMPUTING}


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
    """A hash of all that a step may read of its setup: what the network computes, its layers, the augmentation.

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
    """A hash of what a network computes in evaluation and in training mode, and of its preprocessing."""
    images = jax.ShapeDtypeStruct((2, *network.image_shape), jnp.float32)
    raw = jax.ShapeDtypeStruct((2, *network.image_shape), jnp.uint8)
    programs = ((network.apply, like, images), (network.train, like, images))
    preparing = ((network.prepare, images), (network.prepare, raw))
    parts = [network.image_shape, network.num_classes, *(program_digest(*each) for each in (*programs, *preparing))]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def program_digest(function: Callable[..., Any], *inputs: Any) -> str:
    """A hash of what a function computes from inputs like these: its jaxpr, and every constant in it."""
    closed = jax.make_jaxpr(function)(*inputs)
    text = closed.pretty_print(use_color=False)  # `str` has colours on a terminal
    digest = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", text).encode())
    for constant in _constants(closed):
        array = np.ascontiguousarray(constant)
        digest.update(f"{array.dtype} {array.shape}\n".encode() + array.tobytes())
    return digest.hexdigest()


def _constants(program: Any) -> list[Any]:
    """The constants of a jaxpr and of the jaxprs inside it, in order."""
    constants = [value for value in getattr(program, "consts", ()) if _is_array(value)]
    for equation in getattr(program, "jaxpr", program).eqns:
        constants += [atom.val for atom in equation.invars if hasattr(atom, "val") and _is_array(atom.val)]
        for part in inner_programs(equation):
            constants += _constants(part)
    return constants


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and not jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended)


def step_digest(step: Step) -> str:
    """A hash of the code that a step can reach through its fields, without `shown`."""
    held = {field.name: getattr(step, field.name) for field in dataclasses.fields(step) if field.name != "shown"}
    computing = [held[name] for name in ("run", "init", "body", "done", "count") if name in held]
    return code_digest(held, Setup, entry=computing)


@functools.cache
def package_digest() -> str:
    """A hash of the files of the whole package."""
    digest = hashlib.sha256()
    for path in sorted(ROOT.rglob("*.py")):
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()
