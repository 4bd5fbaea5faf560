"""The types that everything shares: networks, batches, and names of arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.errors import InputError

Variables = Mapping[str, Any]
"""All arrays of a network: `params` receives gradients, every other entry is state (BatchNorm statistics)."""

ApplyFn = Callable[[Variables, jax.Array], jax.Array]
"""`(variables, images [n, h, w, c]) -> logits [n, classes]`, evaluation mode."""

TrainFn = Callable[[Variables, jax.Array], tuple[jax.Array, Mapping[str, Any]]]
"""`(variables, images [n, h, w, c]) -> (logits [n, classes], new state)`, training mode."""


class Batch(NamedTuple):
    """Images `[n, h, w, c]` float32 as the network takes them, labels `[n]` int32."""

    images: jax.Array
    labels: jax.Array


Augment = Callable[[jax.Array, jax.Array], jax.Array]
"""`(images [n, h, w, c], key) -> images`: augments each image at random, before it is prepared."""


def unchanged(images: jax.Array, key: jax.Array) -> jax.Array:
    """The augmentation that changes nothing."""
    del key
    return images


BatchFn = Callable[[jax.Array], Batch]
"""`key -> Batch`: makes or draws one batch on the device."""


def in_unit_range(images: jax.Array) -> jax.Array:
    """uint8 images in 0..255 as float32 in [0, 1]; others unchanged."""
    return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images


@dataclasses.dataclass(frozen=True)
class Network:
    """A classifier as a pair of pure functions over its variables.

    Attributes:
      apply: evaluation mode, `(variables, images [n, h, w, c]) -> logits [n, num_classes]`.
      image_shape: `(h, w, c)` of one input image.
      num_classes: number of logits.
      apply_train: training mode, returns the logits and the new state collections (everything but `params`).
        None for a network whose two modes are the same (no BatchNorm, no dropout).
      prepare: images in [0, 1], or uint8 in 0..255, -> inputs of the two functions (normalised).
    """

    apply: ApplyFn
    image_shape: tuple[int, int, int]
    num_classes: int
    apply_train: TrainFn | None = None
    prepare: Callable[[jax.Array], jax.Array] = in_unit_range

    def answer(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Returns logits `[n, num_classes]` of `images [n, h, w, c]` before `prepare`, evaluation mode."""
        return self.apply(variables, self.prepare(images))

    def train(self, variables: Variables, images: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        """Returns `(logits [n, num_classes], state)` of a training-mode pass over `images [n, h, w, c]`."""
        if self.apply_train is None:
            return self.apply(variables, images), split(variables)[1]
        logits, state = self.apply_train(variables, images)
        return logits, dict(state)


def split(variables: Variables) -> tuple[Any, dict[str, Any]]:
    """Returns `(params, state)` of `variables`; raises InputError if there is no `params` entry."""
    if "params" not in variables:
        raise InputError(f"variables: expected an entry 'params', found {sorted(variables)}")
    return variables["params"], {name: tree for name, tree in variables.items() if name != "params"}


def leaf_name(path: Any) -> str:
    """The name of an array in a pytree, such as `params/layer1.0/conv1/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
    """All arrays of a pytree by name, in the pytree's order; raises InputError if two have the same name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    by_name = {leaf_name(path): leaf for path, leaf in leaves}
    if len(by_name) < len(leaves):
        names = [leaf_name(path) for path, _ in leaves]
        repeated = next(name for name in names if names.count(name) > 1)
        raise InputError(f"variables: expected a name for each array, found {repeated!r} for two")
    return by_name


def replace_leaves(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """`tree` with the named arrays replaced; raises KeyError if `tree` lacks one of the names."""
    unknown = set(leaves) - set(named_leaves(tree))
    if unknown:
        raise KeyError(f"no array named {sorted(unknown)[0]!r} in the tree")
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaves.get(leaf_name(path), leaf), tree)


def check_finite(variables: Variables, *, name: str = "variables") -> None:
    """Raises InputError that names the first array of `variables` holding a NaN or an infinity."""
    for leaf, array in named_leaves(variables).items():
        if jnp.issubdtype(array.dtype, jnp.inexact):
            count = int(jnp.sum(~jnp.isfinite(array)))
            if count:
                raise InputError(f"{name}: expected finite weights, found {count} NaN or infinite values in {leaf}")


def check_clean(clean: Batch | None, network: Network, *, name: str, data: str) -> None:
    """Raises InputError if clean images are missing, not accepted, or do not fit the network.

    Args:
      clean: the images and labels, or None.
      network: gives the shape of images and the number of classes.
      name: of the defence or detector, for errors.
      data: what the method takes: `none` or `clean images`.
    """
    if clean is None:
        if data != "none":
            raise InputError(f"clean: expected clean images and labels, which {name!r} needs, found none")
        return
    if data == "none":
        raise InputError(f"clean: expected none, since {name!r} takes no images, found {len(clean[-1])}")
    if not isinstance(clean, Batch):
        raise InputError(f"clean: expected otbr_jax.Batch(images, labels), found {type(clean).__name__}")
    images, labels = clean.images, np.asarray(clean.labels)
    if np.ndim(images) != 4 or tuple(images.shape[1:]) != tuple(network.image_shape) or images.dtype != np.uint8:
        raise InputError(
            f"clean.images: expected uint8 in 0..255 of shape [n, {', '.join(map(str, network.image_shape))}], found "
            f"{images.dtype} {list(images.shape)}"
        )
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"clean.labels: expected {len(images)} whole numbers, found {labels.dtype} {labels.shape}")
    missing = sorted(set(range(network.num_classes)) - set(labels.tolist()))
    unknown = sorted(set(labels.tolist()) - set(range(network.num_classes)))
    if missing or unknown:
        problem = f"none of class {missing[0]}" if missing else f"label {unknown[0]}"
        raise InputError(
            f"clean.labels: expected some of each of {network.num_classes} classes, 0 to {network.num_classes - 1}, "
            f"found {problem}"
        )
