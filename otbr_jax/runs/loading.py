"""One door for a user's network: an Orbax checkpoint, a PyTorch file or a safetensors file."""

from __future__ import annotations

import os

from otbr_jax.errors import InputError
from otbr_jax.interop.matching import MismatchError, Template, load_tensors
from otbr_jax.interop.tensor_files import TensorFile, is_tensor_folder, read_tensors
from otbr_jax.paths import CHECKPOINT, existing
from otbr_jax.runs.identify import describe, identify
from otbr_jax.runs.orbax_folder import load_variables
from otbr_jax.types import Variables


def load_checkpoint(
    path: str | os.PathLike[str], like: Variables, *, name: str, entry: str = ""
) -> tuple[Variables, Template | None]:
    """Returns a network's variables, and for a file the template that `matching.write_like` writes another with.

    Args:
      path: an Orbax checkpoint directory, or a file or folder of PyTorch or safetensors.
      like: pytree of `jax.ShapeDtypeStruct` that the network expects.
      name: the argument's name, for messages.
      entry: see `load_tensors`.

    Raises:
      InputError: if it is missing, of another kind, damaged, refused, or holds other arrays than the network's.
    """
    root = existing(path, name=name, expected=CHECKPOINT)
    if root.is_dir() and not is_tensor_folder(root):
        return load_variables(root, like, name=name), None
    return load_file(read_tensors(root, name=name), like, name=name, entry=entry)


def load_file(file: TensorFile, like: Variables, *, name: str, entry: str = "") -> tuple[Variables, Template]:
    """As `matching.load_tensors`, and an error says which network the file's tensors are those of, if any.

    Raises:
      InputError: if the tensors are not those of the network, or not finite floating-point numbers.
    """
    try:
        return load_tensors(file, like, name=name, entry=entry)
    except MismatchError as error:
        other = identify(file.sets)
        hint = f"; the file's tensors are those of {describe(other)}" if other else ""
        raise InputError(f"{error}{hint}") from None
