"""Orbax checkpoints of pytrees, and files that are written at once or not at all."""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from otbr_jax.errors import InputError
from otbr_jax.types import leaf_name, named_leaves


def save_checkpoint(path: pathlib.Path, tree: Any) -> None:
    """Writes the arrays of a pytree as an Orbax checkpoint of nested dicts; `path` must not exist."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), _nested(_filled(tree)))


def numeric_leaves(tree: Any) -> dict[str, Any]:
    """The arrays of a pytree by name, without random keys, which no checkpoint format knows."""
    return {
        name: leaf
        for name, leaf in named_leaves(tree).items()
        if not jax.dtypes.issubdtype(jnp.result_type(leaf), jax.dtypes.extended)
    }


def restore_checkpoint(path: pathlib.Path, like: Any) -> Any:
    """Reads arrays that `save_checkpoint` wrote into the structure `like`, as numpy arrays on the host."""
    leaves = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in _filled(like).items()}
    with ocp.StandardCheckpointer() as checkpointer:
        restored = named_leaves(checkpointer.restore(path.absolute(), _nested(leaves)))

    def read(key_path: Any, leaf: Any) -> np.ndarray:
        name = leaf_name(key_path)
        return np.asarray(restored[name]) if name in restored else np.empty(leaf.shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(read, like)


def _filled(tree: Any) -> dict[str, Any]:
    """The arrays of a pytree by name, without empty ones, which Orbax does not save."""
    return {name: leaf for name, leaf in named_leaves(tree).items() if getattr(leaf, "size", 1)}


def load_variables(path: str | os.PathLike[str], like: Any, *, name: str) -> Any:
    """Loads a network's variables from a user's Orbax checkpoint.

    Args:
      path: a checkpoint directory (of `params`, `batch_stats`, ...).
      like: pytree of `jax.ShapeDtypeStruct` that the network expects.
      name: the argument's name, for messages.

    Raises:
      InputError: if it is missing, no Orbax checkpoint, damaged, or its arrays are not those of the network.
    """
    root = pathlib.Path(os.path.expanduser(path)).absolute()
    if not root.is_dir():
        found_there = "a file" if root.exists() else "nothing"
        raise InputError(f"{name}: expected an Orbax checkpoint directory, found {found_there} at {root}")
    if (root / "arrays").is_dir() and not (root / "_METADATA").exists():
        root = root / "arrays"  # a stage of a working directory
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(root).item_metadata
    except Exception as error:
        raise InputError(f"{name}: {root} is no readable Orbax checkpoint ({_first_line(error)})") from None
    if metadata is None:
        raise InputError(f"{name}: {root} is no readable Orbax checkpoint (it describes no arrays, or is truncated)")
    found = named_leaves(dict(metadata.tree))
    expected = named_leaves(like)
    for leaf in sorted(expected.keys() - found.keys()):
        raise InputError(f"{name}: expected an array {leaf} {expected[leaf].shape} in {root}, found none of that name")
    for leaf in sorted(found.keys() - expected.keys()):
        raise InputError(f"{name}: {root} holds {leaf} {tuple(found[leaf].shape)}, which the network does not have")
    for leaf, array in expected.items():
        if tuple(found[leaf].shape) != tuple(array.shape):
            raise InputError(
                f"{name}: expected {leaf} of shape {tuple(array.shape)} as the model's settings say, "
                f"found {tuple(found[leaf].shape)} in {root}"
            )
    try:
        return restore_checkpoint(root, like)
    except Exception as error:
        raise InputError(f"{name}: {root} is truncated or damaged ({_first_line(error)})") from None


def replace_checkpoint(path: pathlib.Path, tree: Any) -> None:
    """Writes an Orbax checkpoint to `path`; what was there stays until the new one is complete.

    A process that dies between the two renames leaves the old one at `path` + `.old`; see `recover_checkpoint`.
    """
    partial, old = path.with_name(f"{path.name}.partial"), path.with_name(f"{path.name}.old")
    recover_checkpoint(path)
    shutil.rmtree(partial, ignore_errors=True)
    save_checkpoint(partial, tree)
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.rename(path, old)
    os.rename(partial, path)
    shutil.rmtree(old, ignore_errors=True)
    sync_folder(path.parent)


def recover_checkpoint(path: pathlib.Path) -> None:
    """Puts back the old checkpoint of a `replace_checkpoint` that was killed before the new one was in its place."""
    old = path.with_name(f"{path.name}.old")
    if old.exists() and not path.exists():
        os.rename(old, path)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file at once: readers see the old text or the new, never a part."""
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *folders, last = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return tree


def sync_folder(folder: pathlib.Path) -> None:
    """Makes renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200] if text else 'no message'}"
