"""Loads a user's checkpoint: Orbax, PyTorch or safetensors."""

from __future__ import annotations

import os
import pathlib

from otbr_jax.errors import InputError
from otbr_jax.interop.matching import MismatchError, Template, load_tensors
from otbr_jax.interop.tensor_files import TensorFile, is_tensor_folder, read_tensors
from otbr_jax.paths import CHECKPOINT, existing
from otbr_jax.runs.infer_model import describe, infer_model
from otbr_jax.runs.orbax_folder import load_variables
from otbr_jax.types import Variables


def read_checkpoint(path: str | os.PathLike[str], *, name: str) -> TensorFile | pathlib.Path:
    """The tensors of a file of PyTorch or safetensors, or of a folder with one, read once.

    For an Orbax checkpoint the directory, which is read later, when the expected arrays are known.

    Args:
      path: the file, folder or directory.
      name: the argument's name, for messages.

    Raises:
      InputError: if it is missing, of another kind, damaged or refused.
    """
    root = existing(path, name=name, expected=CHECKPOINT)
    return root if root.is_dir() and not is_tensor_folder(root) else read_tensors(root, name=name)


def load_checkpoint(
    checkpoint: str | os.PathLike[str] | TensorFile, like: Variables, *, name: str, entry: str = ""
) -> tuple[Variables, Template | None]:
    """Returns a network's variables, and for a file the template with which `matching.write_like` writes another.

    Args:
      checkpoint: an Orbax checkpoint directory, a file or folder of PyTorch or safetensors, or its tensors.
      like: pytree of `jax.ShapeDtypeStruct` that the network expects.
      name: the argument's name, for messages.
      entry: see `load_tensors`.

    Raises:
      InputError: if it is missing, of another kind, damaged, refused, or holds other arrays than the network's.
    """
    content = checkpoint if isinstance(checkpoint, TensorFile) else read_checkpoint(checkpoint, name=name)
    if isinstance(content, pathlib.Path):
        return load_variables(content, like, name=name), None
    return load_file(content, like, name=name, entry=entry)


def load_file(file: TensorFile, like: Variables, *, name: str, entry: str = "") -> tuple[Variables, Template]:
    """As `matching.load_tensors`; an error also names the network that the file holds, if it is a known one.

    Raises:
      InputError: if the tensors are not those of the network, or not finite floating-point numbers.
    """
    try:
        return load_tensors(file, like, name=name, entry=entry)
    except MismatchError as error:
        other = infer_model(file.sets)
        hint = f"; the file's tensors are those of {describe(other)}" if other else ""
        raise InputError(f"{error}{hint}") from None
