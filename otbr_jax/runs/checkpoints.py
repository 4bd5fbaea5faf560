"""Orbax checkpoints of pytrees."""

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

from otbr_jax.files import sync_folder, writing
from otbr_jax.runs.devices import batch_mesh, replicate
from otbr_jax.types import leaf_name, named_leaves


def save_checkpoint(path: pathlib.Path, tree: Any) -> None:
    """Writes the arrays of a pytree as an Orbax checkpoint of nested dicts; `path` must not exist.

    Of several processes only the calling one writes; see `save_together`.
    """
    leaves = _nonempty(tree)
    if jax.process_count() > 1:  # Orbax would wait until all processes write an array that lies in all of them
        leaves = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    with _alone() as checkpointer:
        checkpointer.save(path.absolute(), nested(leaves))


def save_together(path: pathlib.Path, tree: Any) -> None:
    """The same, called by all processes: each writes its part of the larger arrays."""
    if jax.process_count() == 1:
        save_checkpoint(path, tree)
        return
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), nested(replicate(_nonempty(tree), batch_mesh())))


def _alone() -> ocp.Checkpointer:
    """A checkpointer that reads and writes in this process, and waits for no other."""
    if jax.process_count() == 1:
        return ocp.StandardCheckpointer()
    own = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def numeric_leaves(tree: Any) -> dict[str, Any]:
    """The arrays of a pytree by name, without random keys, which no checkpoint format supports."""
    return {
        name: leaf
        for name, leaf in named_leaves(tree).items()
        if not jax.dtypes.issubdtype(jnp.result_type(leaf), jax.dtypes.extended)
    }


def restore_checkpoint(path: pathlib.Path, like: Any) -> Any:
    """Reads arrays that `save_checkpoint` wrote into the structure `like`, as numpy arrays on the host."""
    leaves = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in _nonempty(like).items()}
    with _alone() as checkpointer:
        restored = named_leaves(checkpointer.restore(path.absolute(), nested(leaves)))

    def read(key_path: Any, leaf: Any) -> np.ndarray:
        name = leaf_name(key_path)
        return np.asarray(restored[name]) if name in restored else np.empty(leaf.shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(read, like)


def _nonempty(tree: Any) -> dict[str, Any]:
    """The arrays of a pytree by name, without empty ones, which Orbax does not save."""
    return {name: leaf for name, leaf in named_leaves(tree).items() if getattr(leaf, "size", 1)}


def replace_checkpoint(path: pathlib.Path, tree: Any, *, name: str = "") -> None:
    """Writes an Orbax checkpoint to `path`; an old one stays until the new one is complete.

    A process that dies between the two renames leaves the old one at `path` + `.old`; see `recover_checkpoint`.

    Raises InputError if it cannot be written; the message calls it `name`.
    """
    old = path.with_name(f"{path.name}.old")
    recover_checkpoint(path)
    with writing(path, name=name) as partial:
        save_checkpoint(partial, tree)
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            os.rename(path, old)
        os.rename(partial, path)
    shutil.rmtree(old, ignore_errors=True)
    sync_folder(path.parent)


def recover_checkpoint(path: pathlib.Path) -> None:
    """Restores the old checkpoint if a `replace_checkpoint` was killed before the new one was in its place."""
    old = path.with_name(f"{path.name}.old")
    if old.exists() and not path.exists():
        os.rename(old, path)


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries from names such as `params/conv/kernel`."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *folders, last = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return tree
