"""A network of the user's own: any JAX function and its arrays, from Flax, Haiku, Equinox or by hand."""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.errors import InputError
from otbr_jax.graph.graph import NeuronGraph, check_graph
from otbr_jax.paths import PYTHON, existing
from otbr_jax.types import Network, Variables, named_leaves, replace_leaves


class UserNetwork(NamedTuple):
    """A network of the user's own.

    Attributes:
      network: its functions, over `variables`.
      variables: its arrays.
      restore: turns such variables back into the user's own pytree.
      graph: its neuron graph if it was stated by hand.
    """

    network: Network
    variables: Variables
    restore: Callable[[Variables], Any]
    graph: NeuronGraph | None = None


def bring(
    apply: Callable[[Any, jax.Array], jax.Array],
    variables: Any,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    apply_train: Callable[[Any, jax.Array], tuple[jax.Array, Mapping[str, Any]]] | None = None,
) -> UserNetwork:
    """Makes a `Network` of a function over any pytree of arrays.

    A dictionary with an entry `params` stays as it is: `params` is trained while unlearning, the rest is state. Of any
    other pytree (an NNX state, an Equinox module, a list) all floating-point arrays are `params`, under the names of
    their paths; if running statistics are among them, pass a dictionary that separates them. Leaves that are no arrays
    (functions, strings, Python's numbers, None) stay as they are.

    Args:
      apply: evaluation mode, `(variables, images [n, h, w, c]) -> logits [n, num_classes]`.
      variables: its arrays.
      image_shape: `(h, w, c)` of one input image.
      num_classes: number of logits.
      apply_train: training mode, see `Network`; only for a dictionary with `params`.

    Raises:
      InputError: if there are no floating-point arrays, or the function does not give logits `[n, num_classes]`.
    """
    if isinstance(variables, Mapping) and "params" in variables:
        user = _with_params(apply, variables, image_shape, num_classes, apply_train)
    else:
        if apply_train is not None:
            raise InputError("apply_train: expected variables with an entry 'params' beside it, found none")
        params = {name: leaf for name, leaf in named_leaves(variables).items() if _is_float(leaf)}

        def restore(repaired: Variables) -> Any:
            # A defence does not change counters and random keys: they stay as they are.
            return replace_leaves(variables, repaired["params"])

        network = Network(lambda v, images: apply(restore(v), images), image_shape, num_classes)
        user = UserNetwork(network, {"params": params}, restore)
    if not any(map(_is_float, jax.tree.leaves(user.variables["params"]))):
        raise InputError("variables: expected floating-point arrays, found none")
    _check_logits(user)
    return user


def bring_nnx(module: Any, *, image_shape: tuple[int, int, int], num_classes: int) -> UserNetwork:
    """Makes a `Network` of a module of Flax NNX: its parameters are `params`, all other variables state.

    Raises:
      InputError: as `bring`.
    """
    nnx = importlib.import_module("flax.nnx")
    graph, params, state = nnx.split(module, nnx.Param, ...)
    kinds = {"params": nnx.to_pure_dict(params), "state": nnx.to_pure_dict(state)}

    def merged(variables: Variables, *, train: bool) -> Any:
        new = []
        for old, kind in ((params, "params"), (state, "state")):
            whole = nnx.clone(old)
            nnx.replace_by_pure_dict(whole, variables[kind])
            new.append(whole)
        built = nnx.merge(graph, *new)
        built.train() if train else built.eval()
        return built

    def apply(variables: Variables, images: jax.Array) -> jax.Array:
        logits: jax.Array = merged(variables, train=False)(images)
        return logits

    def apply_train(variables: Variables, images: jax.Array) -> tuple[jax.Array, Mapping[str, Any]]:
        built = merged(variables, train=True)
        logits = built(images)
        return logits, {"state": nnx.to_pure_dict(nnx.split(built, nnx.Param, ...)[2])}

    return bring(apply, kinds, image_shape=image_shape, num_classes=num_classes, apply_train=apply_train)


def load(path: str, *, image_shape: tuple[int, int, int], num_classes: int, name: str = "model.name") -> UserNetwork:
    """Loads a network that `path` names: `package.module:attribute` or `folder/file.py:attribute`.

    The attribute is `(apply, variables)`, or `(Network, variables)`, either with a `NeuronGraph` stated by hand as the
    third, or a module of Flax NNX, or a function without arguments that returns one of these. The module is the user's
    own code: it is run.

    Raises:
      InputError: if there is no such module or attribute, it fails, or it is something else.
    """
    module_name, _, attribute = path.rpartition(":")
    module = _import(module_name, name=name)
    if not hasattr(module, attribute):
        raise InputError(f"{name}: expected {attribute!r} in {module_name}, found none of that name")
    value = getattr(module, attribute)
    if callable(value) and not _library_of(value):
        try:
            value = value()
        except (Exception, SystemExit) as error:
            raise InputError(f"{name}: {path} failed: {type(error).__name__}: {_first_line(error)}") from error
    kind = _library_of(value)
    if kind == "nnx":
        return bring_nnx(value, image_shape=image_shape, num_classes=num_classes)
    if kind:
        raise InputError(
            f"{name}: expected (apply, variables) in {path}, found a module of {kind} alone; bring what calls "
            "it beside it: (lambda module, images: ..., module)"
        )
    if (
        not isinstance(value, tuple)
        or len(value) not in (2, 3)
        or not (callable(value[0]) or isinstance(value[0], Network))
    ):
        raise InputError(f"{name}: expected {path} to be (apply, variables) or to return it, found {_kind(value)}")
    function, variables, *rest = value
    if isinstance(function, Network):
        shape, classes, train, apply = function.image_shape, function.num_classes, function.apply_train, function.apply
        user = bring(apply, variables, image_shape=shape, num_classes=classes, apply_train=train)
    else:
        user = bring(function, variables, image_shape=image_shape, num_classes=num_classes)
    if not rest:
        return user
    if not isinstance(rest[0], NeuronGraph):
        raise InputError(f"{name}: expected a NeuronGraph as the third of {path}, found {_kind(rest[0])}")
    check_graph(rest[0], user.variables)
    return user._replace(graph=rest[0])


def _with_params(
    apply: Callable[[Any, jax.Array], jax.Array],
    variables: Mapping[str, Any],
    image_shape: tuple[int, int, int],
    num_classes: int,
    apply_train: Callable[[Any, jax.Array], tuple[jax.Array, Mapping[str, Any]]] | None,
) -> UserNetwork:
    """A network over a dictionary with an entry `params`; leaves that are no arrays or numbers are left out."""
    arrays = {name: _arrays_of(tree) for name, tree in variables.items()}
    arrays = {name: tree for name, tree in arrays.items() if name == "params" or jax.tree.leaves(tree)}
    if len(jax.tree.leaves(arrays)) == len(jax.tree.leaves(variables)):
        return UserNetwork(Network(apply, image_shape, num_classes, apply_train), arrays, lambda repaired: repaired)

    def restore(repaired: Variables) -> Any:
        return replace_leaves(variables, named_leaves(repaired))

    train = None
    if apply_train is not None:
        function = apply_train

        def train(v: Variables, images: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
            logits, state = function(restore(v), images)
            return logits, {name: _arrays_of(tree) for name, tree in state.items() if name in arrays}

    network = Network(lambda v, images: apply(restore(v), images), image_shape, num_classes, train)
    return UserNetwork(network, arrays, restore)


def _arrays_of(tree: Any) -> Any:
    """A pytree with None, which is no leaf, in place of leaves that are no arrays or numbers."""

    def array(leaf: Any) -> Any:
        if hasattr(leaf, "dtype"):
            return leaf
        return jnp.asarray(leaf) if isinstance(leaf, int | float | complex) else None

    return jax.tree.map(array, tree)


def _library_of(value: Any) -> str:
    """The library of a module; empty for a value that is no module."""
    names = {f"{base.__module__.partition('.')[0]}.{base.__name__}" for base in type(value).__mro__}
    if any(base.__module__.startswith("flax.nnx") and base.__name__ == "Module" for base in type(value).__mro__):
        return "nnx"
    return "Equinox" if "equinox.Module" in names else "Linen" if "flax.Module" in names else ""


def _is_float(leaf: Any) -> bool:
    """Whether a leaf is an array of floating-point numbers; Python's own numbers are settings."""
    return hasattr(leaf, "dtype") and bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def _import(module_name: str, *, name: str) -> Any:
    try:
        if not module_name.endswith(".py"):
            return importlib.import_module(module_name)
        file = existing(module_name, name=name, expected=PYTHON, is_there=pathlib.Path.is_file)
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(file.stem, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{name}: cannot import {module_name}: {type(error).__name__}: {_first_line(error)}"
        ) from error


def _check_logits(user: UserNetwork) -> None:
    for batch in (2, 3):  # a function for a fixed batch size fails here, not in the middle of a repair
        _check_batch(user, batch)


def _check_batch(user: UserNetwork, batch: int) -> None:
    network = user.network
    images = jax.ShapeDtypeStruct((batch, *network.image_shape), np.float32)
    try:
        logits = jax.eval_shape(network.apply, user.variables, images)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"apply: expected a function of (variables, images {images.shape}), "
            f"it raised {type(error).__name__}: {_first_line(error)}"
        ) from error
    expected = (batch, network.num_classes)
    if getattr(logits, "shape", None) != expected:
        raise InputError(
            f"apply: expected logits {expected} for images {images.shape} (model.image_shape, model.num_classes), "
            f"found {getattr(logits, 'shape', _kind(logits))}"
        )


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)} ({', '.join(type(part).__name__ for part in value)})"
    return type(value).__name__


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")[:200]
