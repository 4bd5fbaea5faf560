"""Loads a user's Orbax checkpoint: the folder itself, or one inside a trainer's folder."""

from __future__ import annotations

import logging
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from otbr_jax.errors import InputError
from otbr_jax.paths import local_path
from otbr_jax.runs.checkpoints import nested, restore_checkpoint
from otbr_jax.types import leaf_name, named_leaves

_LOG = logging.getLogger(__name__)
_ITEMS = ("arrays", "default", "state", "params", "model", "items")  # of a stage, and usual names of items


def load_variables(path: str | os.PathLike[str], like: Any, *, name: str) -> Any:
    """Loads a network's variables from a user's Orbax checkpoint; one line names other contents, which are ignored.

    Args:
      path: a checkpoint directory (of `params`, `batch_stats`, ..., alone or in a training state), or the folder of a
        `CheckpointManager`, which stands for its latest step.
      like: pytree of `jax.ShapeDtypeStruct` that the network expects.
      name: the argument's name, for messages.

    Raises:
      InputError: if it is missing, no Orbax checkpoint, damaged, or its arrays are not those of the network.
    """
    folder = local_path(path, name=name)
    if not folder.is_dir():
        what = "a file" if folder.exists() else "nothing"
        raise InputError(f"{name}: expected an Orbax checkpoint directory, found {what} at {folder}")
    root = _checkpoint_in(folder)
    _check_links(root, name=name)
    if root != folder:
        _LOG.warning("%s: took the checkpoint %s", name, root)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(root).item_metadata
    except Exception as error:
        raise InputError(f"{name}: {root} is no readable Orbax checkpoint ({_first_line(error)})") from None
    if metadata is None:
        raise InputError(f"{name}: {root} is no readable Orbax checkpoint (it describes no arrays, or is truncated)")
    stored = named_leaves(metadata.tree)
    expected = named_leaves(like)
    prefix = _state_in(stored, expected)
    own = {leaf.removeprefix(prefix): array for leaf, array in stored.items() if leaf.startswith(prefix)}
    for leaf in sorted(expected.keys() - own.keys()):
        raise InputError(f"{name}: expected an array {leaf} {expected[leaf].shape} in {root}, found none of that name")
    collections = {leaf.partition("/")[0] for leaf in expected}
    for leaf in sorted(own.keys() - expected.keys()):
        if leaf.partition("/")[0] in collections:
            raise InputError(f"{name}: {root} holds {leaf} {tuple(own[leaf].shape)}, which the network does not have")
    if beside := sorted({leaf.partition("/")[0] for leaf in stored.keys() - {prefix + leaf for leaf in expected}}):
        _LOG.warning("%s: left out of %s what is not the network's: %s", name, root, ", ".join(beside[:5]))
    for leaf, array in expected.items():
        if tuple(own[leaf].shape) != tuple(array.shape):
            raise InputError(
                f"{name}: expected {leaf} of shape {tuple(array.shape)} as the model's settings say, "
                f"found {tuple(own[leaf].shape)} in {root}"
            )
    try:
        return _restore_part(root, like, prefix, stored)
    except Exception as error:
        raise InputError(f"{name}: {root} is truncated or damaged ({_first_line(error)})") from None


def _checkpoint_in(folder: pathlib.Path) -> pathlib.Path:
    """The checkpoint of a folder: itself, the folder of a stage or an item in it, or that of the latest step."""
    for _ in range(3):
        if (folder / "_METADATA").exists():
            break
        inside = [child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")]
        steps = [child for child in inside if _step(child.name) is not None]
        items = [child for child in inside if (child / "_METADATA").exists()]
        known = [child for child in items if child.name in _ITEMS]
        chosen = known or (items if len(items) == 1 else []) or sorted(steps, key=lambda step: _step(step.name) or 0)
        if not chosen:
            break
        folder = chosen[-1]
    return folder


def _step(name: str) -> int | None:
    """The number at the end of a step's name, such as `100` or `checkpoint_100`; None without one."""
    digits = re.fullmatch(r"(?:\w*[_-])?(\d+)", name)
    return int(digits[1]) if digits else None


def _check_links(folder: pathlib.Path, *, name: str) -> None:
    """Raises InputError if a checkpoint holds a link to a file outside it, which an attacker may have chosen."""
    home = folder.resolve()
    for entry in folder.rglob("*"):
        if entry.is_symlink() and not entry.resolve().is_relative_to(home):
            raise InputError(
                f"{name}: {entry} is a link to {entry.resolve()}, outside of the checkpoint; copy it there"
            )


def _state_in(stored: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """The prefix of the network's arrays in a training state, such as `model/`; empty if no other fits better."""
    leaf = next(iter(expected), "")
    candidates = (other.removesuffix(leaf) for other in stored if other.endswith(f"/{leaf}"))
    prefixes = ["", *sorted(candidates, key=len)]
    return max(prefixes, key=lambda prefix: sum(prefix + leaf in stored for leaf in expected))


def _restore_part(root: pathlib.Path, like: Any, prefix: str, stored: Mapping[str, Any]) -> Any:
    """The network's arrays of a checkpoint that may hold others."""
    wanted = {prefix + leaf: array for leaf, array in named_leaves(like).items()}
    if wanted.keys() >= stored.keys():
        whole = restore_checkpoint(root, nested(wanted))
    else:
        parts = nested({leaf: np.empty(array.shape, array.dtype) for leaf, array in wanted.items()})
        arguments = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype), parts)
        with ocp.PyTreeCheckpointer() as checkpointer:
            whole = checkpointer.restore(
                root, args=ocp.args.PyTreeRestore(parts, restore_args=arguments, partial_restore=True)
            )
    arrays = named_leaves(whole)
    return jax.tree_util.tree_map_with_path(lambda path, _: np.asarray(arrays[prefix + leaf_name(path)]), like)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200] if text else 'no message'}"
