"""Files of named tensors: PyTorch's and safetensors', told apart by their content, written at once or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import IO, NamedTuple

import numpy as np

from otbr_jax.errors import InputError
from otbr_jax.extras import needed
from otbr_jax.interop.torch_files import Envelope, import_torch, is_torch_file, pickled_names, read_torch, write_torch

FORMATS: Mapping[str, str] = {".pt": "torch", ".pth": "torch", ".tar": "torch", ".safetensors": "safetensors"}
"""The format of a new file by its suffix."""

_SCANNED = 1 << 20
_BARE = Envelope()


class TensorFile(NamedTuple):
    """What a file holds, and what it takes to write another of its kind.

    Attributes:
      path: where it was.
      format: 'torch' or 'safetensors'.
      tensors: arrays by name, in the file's order, layouts and dtypes (bfloat16 is that of `ml_dtypes`).
      envelope: what surrounds them.
    """

    path: pathlib.Path
    format: str
    tensors: Mapping[str, np.ndarray]
    envelope: Envelope


def read_tensors(path: str | os.PathLike[str], *, name: str) -> TensorFile:
    """Reads a file of PyTorch or safetensors; its content says which, whatever the suffix.

    Nothing in the file is executed: see `torch_files.read_torch`.

    Args:
      path: the file.
      name: the argument's name, for messages.

    Raises:
      InputError: if there is no such file, it is empty, damaged, of another kind, refused, or torch is not installed.
    """
    root = pathlib.Path(os.path.expanduser(path)).absolute()
    if not root.is_file():
        found = "a directory" if root.is_dir() else "no file" if root.exists() else "nothing"
        raise InputError(f"{name}: expected a PyTorch or safetensors file, found {found} at {root}")
    try:
        with open(root, "rb") as file:
            head = file.read(_SCANNED)
        if is_torch_file(root):
            return TensorFile(root, "torch", *read_torch(root, name=name))
    except OSError as error:
        raise InputError(f"{name}: cannot read {root} ({error.strerror})") from None
    # A safetensors file is the length of its header (8 bytes), and the header, which is JSON.
    if head and (head[8:9] == b"{" or root.suffix == ".safetensors"):
        return TensorFile(root, "safetensors", *_read_safetensors(root, name=name))
    raise InputError(f"{name}: expected a PyTorch or safetensors file, found {_other_kind(head)} at {root}")


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    *,
    format: str,
    envelope: Envelope = _BARE,
    name: str = "path",
) -> None:
    """Writes a file of that format ('torch' or 'safetensors'); readers see the old file or the new, never a part.

    Args:
      path: the file, replaced if it exists.
      tensors: arrays by name, in the order in which PyTorch's format stores them; safetensors has an order of its own.
      format: see `FORMATS`.
      envelope: what surrounds the tensors.
      name: the argument's name, for messages.

    Raises:
      InputError: if it cannot be written, or torch is needed and not installed.
    """
    if format == "safetensors":
        files = needed("safetensors.numpy", what=f"{name}: a safetensors file")
        contiguous = {key: np.array(array, order="C") for key, array in tensors.items()}
        content = files.save(contiguous, metadata=dict(envelope.metadata or {}) or None)
        _write_at_once(pathlib.Path(os.path.expanduser(path)), lambda file: file.write(content), name=name)
    else:
        import_torch(name)
        _write_at_once(
            pathlib.Path(os.path.expanduser(path)),
            lambda file: write_torch(file, tensors, envelope, name=name),
            name=name,
        )


def write_state_dict(path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], *, name: str = "path") -> None:
    """Writes tensors as a plain file of the format that the suffix names: .pt, .pth, .tar or .safetensors.

    Raises:
      InputError: if the suffix is another, it cannot be written, or torch is needed and not installed.
    """
    suffix = pathlib.Path(path).suffix
    if suffix not in FORMATS:
        raise InputError(f"{name}: expected a file name that ends in one of {sorted(FORMATS)}, found {str(path)!r}")
    metadata = {"format": "pt"}  # layouts are PyTorch's; transformers and others look for this
    write_tensors(path, tensors, format=FORMATS[suffix], envelope=Envelope(metadata=metadata), name=name)


def _read_safetensors(path: pathlib.Path, *, name: str) -> tuple[dict[str, np.ndarray], Envelope]:
    safetensors = needed("safetensors", what=f"{name}: a safetensors file")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = file.metadata()
            tensors = {key: np.asarray(file.get_tensor(key)) for key in file.offset_keys()}
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise InputError(f"{name}: {path} is no readable safetensors file ({reason})") from None
    if not tensors:
        raise InputError(f"{name}: expected tensors, found none in {path}")
    return tensors, Envelope(metadata=metadata)


def _other_kind(head: bytes) -> str:
    """What a file that starts like this may be."""
    if not head:
        return "an empty file"
    if head.startswith(b"PK"):
        return "a zip archive that is damaged, or that torch.save did not write"
    if names := pickled_names(io.BytesIO(head)):
        return f"a pickle that torch.save did not write (it asks for {names[0]}, which was not run)"
    return f"a file that starts with {head[:16]!r}"


def _write_at_once(path: pathlib.Path, write: Callable[[IO[bytes]], object], *, name: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"{name}: cannot write {path} ({error.strerror})") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
