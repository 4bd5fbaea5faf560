"""Converts variables of this project's networks to PyTorch state dicts and back, by one rule for names and layouts.

The modules of `otbr_jax.models` carry the names of their PyTorch originals, dots included (`layer1.0`), so that no
table of names is needed: `params/layer1.0/conv1/kernel` is `layer1.0.conv1.weight`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from otbr_jax.types import Variables, leaf_name, named_leaves

StateDict = Mapping[str, np.ndarray]
"""Tensors by PyTorch's names, in PyTorch's layouts (convolutions OIHW, dense layers OI)."""

_LEAF_NAMES = {"scale": "weight", "mean": "running_mean", "var": "running_var"}
_COUNTER = "num_batches_tracked"


def tensor_name(leaf: str) -> str:
    """PyTorch's name of an array: `batch_stats/layer1.0/bn1/mean` -> `layer1.0.bn1.running_mean`."""
    _, *modules, last = leaf.split("/")
    return ".".join((*modules, _LEAF_NAMES.get(last, last.replace("kernel", "weight"))))


def tensor_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """PyTorch's shape of an array of this name and shape."""
    return tuple(shape[axis] for axis in _torch_axes(leaf, len(shape)))


def to_state_dict(variables: Variables) -> dict[str, np.ndarray]:
    """All arrays under PyTorch's names and in its layouts, ready for `load_state_dict(strict=True)`.

    BatchNorm's counter of batches, which JAX networks do not keep, is 0.
    """
    tensors: dict[str, np.ndarray] = {}
    for leaf, array in named_leaves(variables).items():
        host = np.asarray(array)
        tensors[tensor_name(leaf)] = np.ascontiguousarray(host.transpose(_torch_axes(leaf, host.ndim)))
        if leaf.endswith("/var"):
            tensors[tensor_name(leaf.removesuffix("var") + _COUNTER)] = np.zeros((), np.int64)
    return tensors


def from_state_dict(tensors: StateDict, like: Variables) -> Variables:
    """The variables of a network from a complete state dict; the inverse of `to_state_dict`.

    Args:
      tensors: by PyTorch's names; those that `like` does not need are ignored.
      like: pytree of arrays or `jax.ShapeDtypeStruct` that the network expects, which also gives the dtypes.

    Raises:
      KeyError: if a tensor is missing.
    """

    def leaf(path: Any, spec: Any) -> np.ndarray:
        name = leaf_name(path)
        tensor = np.asarray(tensors[tensor_name(name)])
        array = tensor.transpose(np.argsort(_torch_axes(name, tensor.ndim)))
        return np.ascontiguousarray(array, dtype=spec.dtype)

    return jax.tree_util.tree_map_with_path(leaf, like)


def _torch_axes(leaf: str, ndim: int) -> tuple[int, ...]:
    """The array's axis for each axis of the tensor: HWIO -> OIHW, IO -> OI, the same for all but kernels."""
    if not leaf.endswith("kernel"):
        return tuple(range(ndim))
    return (ndim - 1, ndim - 2, *range(ndim - 2))
