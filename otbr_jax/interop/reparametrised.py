"""Reparametrised weights of a file: pruned, weight-normalised, spectrally normalised, or split among heads.

PyTorch's wrappers store the tensors that a weight is computed from, under names of their own. Here the weight is
computed as the network does in evaluation mode, and a changed weight is split into the same tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Arrays = tuple[np.ndarray, ...]


class Kind(NamedTuple):
    """A kind of reparametrisation.

    Attributes:
      endings: of the tensors' names, in the order of the functions' arguments.
      fits: whether tensors of these shapes are of this kind.
      join: tensors -> weight.
      split: (weight, old tensors) -> tensors, from which `join` computes the weight.
      whole: the ending of the weight's name.
    """

    endings: tuple[str, ...]
    fits: Callable[[Arrays], bool]
    join: Callable[[Arrays], np.ndarray]
    split: Callable[[np.ndarray, Arrays], Arrays]
    whole: str = ""


def _norm(direction: np.ndarray, length: np.ndarray) -> np.ndarray:
    """The norm over the axes along which there is one length."""
    axes = tuple(axis for axis, size in enumerate(length.shape) if size == 1)
    return np.asarray(np.sqrt(np.sum(direction.astype(np.float64) ** 2, axis=axes, keepdims=True)))


def _normalised(tensors: Arrays) -> bool:
    length, direction = tensors
    pairs = zip(length.shape, direction.shape, strict=True) if length.ndim == direction.ndim else [(0, 1)]
    return all(one in (1, whole) for one, whole in pairs)


def _scaled(tensors: Arrays) -> np.ndarray:
    length, direction = tensors
    return (length * direction / np.maximum(_norm(direction, length), 1e-12)).astype(direction.dtype)


def _lengths(weight: np.ndarray, old: Arrays) -> Arrays:
    return _norm(weight, old[0]).astype(old[0].dtype), weight.astype(old[1].dtype)


def _same_shapes(tensors: Arrays) -> bool:
    return len({tensor.shape for tensor in tensors}) == 1


def _masked(tensors: Arrays) -> np.ndarray:
    return (tensors[0] * tensors[1]).astype(tensors[0].dtype)


def _unmasked(weight: np.ndarray, old: Arrays) -> Arrays:
    return weight.astype(old[0].dtype), np.where(weight != 0, 1, old[1]).astype(old[1].dtype)


def _largest(weight: np.ndarray, left: np.ndarray, right: np.ndarray) -> float:
    """The singular value that the two vectors stand for; a weight has its outputs along one of the axes."""
    axis = next(axis for axis, size in enumerate(weight.shape) if size == left.size)
    matrix = np.moveaxis(weight, axis, 0).reshape(left.size, -1).astype(np.float64)
    return float(left.astype(np.float64) @ matrix @ right.astype(np.float64))


def _spectral(tensors: Arrays) -> bool:
    weight, left, right = tensors
    return left.ndim == right.ndim == 1 and left.size in weight.shape and left.size * right.size == weight.size


def _divided(tensors: Arrays) -> np.ndarray:
    weight, left, right = tensors
    return (weight / _largest(weight, left, right)).astype(weight.dtype)


def _multiplied(weight: np.ndarray, old: Arrays) -> Arrays:
    # The division stays, so that the weight is stored with a largest value of one by the first vector's length.
    _, left, right = old
    largest = _largest(weight, left, right)
    return weight.astype(old[0].dtype), (left / largest).astype(left.dtype), right


def _stacked(tensors: Arrays) -> np.ndarray:
    return np.concatenate(tensors)


def _unstacked(weight: np.ndarray, old: Arrays) -> Arrays:
    return tuple(np.split(weight.astype(old[0].dtype), len(old)))


def _stack(ending: str, *names: str) -> Kind:
    """Queries, keys and values, each with its own projection."""
    endings = tuple(f".{name}.{ending}" for name in names)
    return Kind(endings, _same_shapes, _stacked, _unstacked, whole=f".qkv.{ending}")


KINDS: Sequence[Kind] = (
    Kind(("_orig", "_mask"), _same_shapes, _masked, _unmasked),  # torch.nn.utils.prune
    Kind(("_orig", "_u", "_v"), _spectral, _divided, _multiplied),  # torch.nn.utils.spectral_norm
    Kind(("_g", "_v"), _normalised, _scaled, _lengths),  # torch.nn.utils.weight_norm
    Kind((".original0", ".original1"), _normalised, _scaled, _lengths),  # parametrizations.weight_norm
    Kind((".original", ".0._u", ".0._v"), _spectral, _divided, _multiplied),  # parametrizations.spectral_norm
    _stack("weight", "query", "key", "value"),  # transformers
    _stack("bias", "query", "key", "value"),
    _stack("weight", "q_proj", "k_proj", "v_proj"),  # since version 5
    _stack("bias", "q_proj", "k_proj", "v_proj"),
)
"""The kinds of PyTorch's utilities, and of transformers' attention."""

_PARAMETRIZED = re.compile(r"(^|\.)parametrizations\.([^.]+)$")


class Reparametrised(NamedTuple):
    """How one weight is stored: the kind, and the names of its tensors in the file."""

    kind: Kind
    names: tuple[str, ...]


def join_weights(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, Reparametrised]]:
    """Computes reparametrised weights: tensors with whole weights, and how each of those weights is stored.

    Args:
      tensors: arrays by the file's names.

    Returns:
      `(tensors, {weight's name: how it is stored})`; a weight stands where its first tensor stood.
    """
    weights: dict[str, tuple[str, Reparametrised]] = {}  # by the first tensor's name
    used: set[str] = set()
    for name in tensors:
        for kind in KINDS:
            stem = name.removesuffix(kind.endings[0])
            names = tuple(stem + ending for ending in kind.endings)
            if stem == name or used & set(names) or not all(each in tensors for each in names):
                continue
            if kind.fits(tuple(tensors[each] for each in names)):
                weight = _PARAMETRIZED.sub(r"\1\2", stem) + kind.whole
                if weight not in tensors:
                    weights[name] = (weight, Reparametrised(kind, names))
                    used.update(names)
                    break
    whole: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        if name in weights:
            weight, stored = weights[name]
            whole[weight] = stored.kind.join(tuple(tensors[each] for each in stored.names))
        elif name not in used:
            whole[name] = array
    return whole, dict(weights.values())
