"""A network of the user's own: any JAX function and its arrays, from Flax, Haiku, Equinox or by hand."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.errors import InputError
from otbr_jax.graph.graph import NeuronGraph, check_graph
from otbr_jax.types import Network, Variables, named_leaves, replace_leaves


class Brought(NamedTuple):
    """A user's network.

    Attributes:
      network: its functions, over `variables`.
      variables: its arrays.
      restore: turns such variables back into the pytree that the user brought.
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
) -> Brought:
    """Makes a `Network` of a function over any pytree of arrays.

    A dictionary with an entry `params` stays as it is: `params` is trained while unlearning, the rest is state. Of any
    other pytree (an NNX state, an Equinox module's arrays, a list) all floating-point arrays are `params`, under the
    names of their paths; whoever keeps running statistics among them should bring a dictionary that sets them apart.

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
        network = Network(apply, image_shape, num_classes, apply_train)
        arrays = jax.tree.map(lambda leaf: leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf), variables)
        brought = Brought(network, arrays, lambda repaired: repaired)
    else:
        if apply_train is not None:
            raise InputError("apply_train: expected variables with an entry 'params' beside it, found none")
        params = {name: jnp.asarray(leaf) for name, leaf in named_leaves(variables).items() if _is_float(leaf)}

        def restore(repaired: Variables) -> Any:
            # Counters and random keys are not the defence's business: they stay as they came.
            return replace_leaves(variables, repaired["params"])

        network = Network(lambda v, images: apply(restore(v), images), image_shape, num_classes)
        brought = Brought(network, {"params": params}, restore)
    if not any(map(_is_float, jax.tree.leaves(brought.variables["params"]))):
        raise InputError("variables: expected floating-point arrays, found none")
    _check_logits(brought)
    return brought


def load(path: str, *, image_shape: tuple[int, int, int], num_classes: int, name: str = "model.name") -> Brought:
    """Loads a network that `path` names: `package.module:attribute` or `folder/file.py:attribute`.

    The attribute is `(apply, variables)`, or `(Network, variables)`, either with a `NeuronGraph` stated by hand as the
    third, or a function without arguments that returns one of these. The module is the user's own code: it is run.

    Raises:
      InputError: if there is no such module or attribute, it fails, or it is something else.
    """
    module_name, _, attribute = path.rpartition(":")
    module = _import(module_name, name=name)
    if not hasattr(module, attribute):
        raise InputError(f"{name}: expected {attribute!r} in {module_name}, found none of that name")
    found = getattr(module, attribute)
    if callable(found):
        try:
            found = found()
        except (Exception, SystemExit) as error:
            raise InputError(f"{name}: {path} failed: {type(error).__name__}: {_first_line(error)}") from error
    if (
        not isinstance(found, tuple)
        or len(found) not in (2, 3)
        or not (callable(found[0]) or isinstance(found[0], Network))
    ):
        raise InputError(f"{name}: expected {path} to be (apply, variables) or to return it, found {_kind(found)}")
    function, variables, *rest = found
    if isinstance(function, Network):
        shape, classes, train, apply = function.image_shape, function.num_classes, function.apply_train, function.apply
        brought = bring(apply, variables, image_shape=shape, num_classes=classes, apply_train=train)
    else:
        brought = bring(function, variables, image_shape=image_shape, num_classes=num_classes)
    if not rest:
        return brought
    if not isinstance(rest[0], NeuronGraph):
        raise InputError(f"{name}: expected a NeuronGraph as the third of {path}, found {_kind(rest[0])}")
    check_graph(rest[0], brought.variables)
    return brought._replace(graph=rest[0])


def _is_float(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))


def _import(module_name: str, *, name: str) -> Any:
    try:
        if not module_name.endswith(".py"):
            return importlib.import_module(module_name)
        file = pathlib.Path(os.path.expanduser(module_name))
        if not file.is_file():
            raise InputError(f"{name}: expected a Python file, found nothing at {file}")
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


def _check_logits(brought: Brought) -> None:
    for batch in (2, 3):  # a function that only takes one number of images fails here, not in the middle of a repair
        _check_batch(brought, batch)


def _check_batch(brought: Brought, batch: int) -> None:
    network = brought.network
    images = jax.ShapeDtypeStruct((batch, *network.image_shape), np.float32)
    try:
        logits = jax.eval_shape(network.apply, brought.variables, images)
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
