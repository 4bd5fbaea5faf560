"""Files of named tensors, PyTorch's and safetensors': recognised by their content, and written atomically."""

from __future__ import annotations

import glob
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from otbr_jax.errors import InputError
from otbr_jax.extras import needed
from otbr_jax.files import write_bytes, writing
from otbr_jax.interop.diagnose import UNKNOWN, what_it_is
from otbr_jax.interop.torch_files import (
    Envelope,
    Path,
    TensorSet,
    import_torch,
    is_torch_file,
    read_torch,
    write_torch,
)
from otbr_jax.paths import local_path

FORMATS: Mapping[str, str] = {
    ".pt": "torch",
    ".pth": "torch",
    ".tar": "torch",
    ".ckpt": "torch",
    ".bin": "torch",
    ".safetensors": "safetensors",
}
"""The format of a new file by its suffix."""

_SCANNED = 1 << 20
_BARE = Envelope()
_INDEX = ".index.json"
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.[a-z]+")
_PUBLISHED = ("model.safetensors", "pytorch_model.bin")  # Hugging Face's names


class TensorFile(NamedTuple):
    """The content of a file, from which another one of its format can be written.

    Attributes:
      path: its path.
      format: 'torch' or 'safetensors'.
      sets: named tensors by where they lie in the file, () for its top.
      envelope: the rest of the file around them.
    """

    path: pathlib.Path
    format: str
    sets: Mapping[Path, TensorSet]
    envelope: Envelope

    @property
    def tensors(self) -> Mapping[str, np.ndarray]:
        """The tensors of a file that holds a single set."""
        (single,) = self.sets.values()
        return single.tensors


def read_tensors(path: str | os.PathLike[str], *, name: str) -> TensorFile:
    """Reads a file of PyTorch or safetensors; its content decides which, not its suffix.

    Nothing in the file is executed: see `torch_files.read_torch`. A folder as Hugging Face publishes it stands for its
    file of weights; an index, or any of its shards, stands for all shards.

    Args:
      path: the file or folder.
      name: the argument's name, for messages.

    Raises:
      InputError: if there is no such file, it is empty, damaged, of another kind, refused, or torch is not installed.
    """
    root = local_path(path, name=name)
    if root.is_dir():
        root = _file_in(root, name=name)
    if not root.is_file():
        what = "no file" if root.exists() else "nothing"
        raise InputError(f"{name}: expected a PyTorch or safetensors file, found {what} at {root}")
    shard = _SHARD.fullmatch(root.name)
    if shard:
        index = next(iter(sorted(root.parent.glob(f"{glob.escape(shard[1])}.*{_INDEX}"))), None)
        if index is None and int(shard[3]) > 1:
            raise InputError(
                f"{name}: {root} is part {int(shard[2])} of {int(shard[3])}; expected all parts and their index, "
                f"{shard[1]}.*{_INDEX}, in one folder"
            )
        root = index or root
    if root.name.endswith(_INDEX):
        return _read_shards(root, name=name)
    return _read_one(root, name=name)


def is_tensor_folder(folder: pathlib.Path) -> bool:
    """Whether a folder holds a file of weights, and no Orbax checkpoint."""
    return bool(_files_in(folder))


def is_published_folder(folder: pathlib.Path) -> bool:
    """Whether a folder is one network as Hugging Face publishes it, and no folder of several."""
    return bool(_published_in(folder))


def _published_in(folder: pathlib.Path) -> list[pathlib.Path]:
    published = [folder / (name + ending) for name in _PUBLISHED for ending in ("", _INDEX)]
    return [file for file in published if file.is_file()]


def _files_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files that a folder may stand for, those with Hugging Face's names first."""
    if there := _published_in(folder):
        return there[:1]
    return [file for file in sorted(folder.iterdir()) if file.suffix in FORMATS and file.is_file()]


def _file_in(folder: pathlib.Path, *, name: str) -> pathlib.Path:
    files = _files_in(folder)
    if not files:
        raise InputError(f"{name}: expected a PyTorch or safetensors file, found a directory without one at {folder}")
    if len(files) > 1 and not _SHARD.fullmatch(files[0].name):
        several = ", ".join(file.name for file in files[:5])
        raise InputError(f"{name}: expected one file of weights in {folder}, found {several}; give one of them")
    return _inside(files[0], name=name)


def _stays_inside(file: pathlib.Path, folder: pathlib.Path) -> bool:
    """Whether a file lies in its folder, or in Hugging Face's cache of the files that its folders link to."""
    real, home = file.resolve(), folder.resolve()
    return real.is_relative_to(home) or (home.parent.name == "snapshots" and real.parent == home.parents[1] / "blobs")


def _inside(file: pathlib.Path, *, name: str) -> pathlib.Path:
    """The file; raises InputError if it is a link to a file outside its folder, which an attacker may have chosen."""
    if not _stays_inside(file, file.parent):
        raise InputError(f"{name}: {file} is a link to {file.resolve()}, outside of its folder; give that file itself")
    return file


def _read_shards(index: pathlib.Path, *, name: str) -> TensorFile:
    """All the files that an index names, as one."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(places.values()))
        are_names = all(isinstance(file, str) and file == pathlib.Path(file).name for file in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{name}: {index} is no readable index of shards ({type(error).__name__})") from None
    if not files or not are_names:
        raise InputError(f"{name}: {index}: expected names of files beside it, found {', '.join(map(str, files[:3]))}")
    tensors: dict[str, np.ndarray] = {}
    form = "safetensors"
    for file in files:
        shard = index.with_name(file)
        if not shard.is_file():
            raise InputError(f"{name}: {index} names {file}, which is not in its folder")
        part = _read_one(_inside(shard, name=name), name=name)
        form = part.format
        for each in part.sets.values():
            tensors |= {key: array for key, array in each.tensors.items() if places.get(key) == file}
    missing = [key for key in places if key not in tensors]
    if missing:
        raise InputError(f"{name}: {index} promises {missing[0]} in {places[missing[0]]}, which does not hold it")
    metadata = {"format": "pt"} if form == "safetensors" else None
    return TensorFile(index, form, {(): TensorSet(tensors)}, Envelope(metadata=metadata))


def _read_one(root: pathlib.Path, *, name: str) -> TensorFile:
    try:
        with open(root, "rb") as file:
            head = file.read(_SCANNED)
        if is_torch_file(root):
            return TensorFile(root, "torch", *read_torch(root, name=name))
    except OSError as error:
        raise InputError(f"{name}: cannot read {root} ({error.strerror})") from None
    # A safetensors file is the length of its header (8 bytes), and the header, which is JSON.
    kind = what_it_is(root, head)
    if head[8:9] == b"{" or (root.suffix == ".safetensors" and kind.startswith(UNKNOWN)):
        tensors, metadata = _read_safetensors(root, name=name)
        return TensorFile(root, "safetensors", {(): TensorSet(tensors)}, Envelope(metadata=metadata))
    raise InputError(f"{name}: expected a PyTorch or safetensors file, found {kind} at {root}")


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    *,
    format: str,
    envelope: Envelope = _BARE,
    name: str = "path",
) -> list[str]:
    """Writes a file of that format ('torch' or 'safetensors') atomically: readers see the old file or the new one.

    Args:
      path: the file, replaced if it exists.
      tensors: arrays by name, in the order in which PyTorch's format stores them; safetensors has an order of its own.
      format: see `FORMATS`.
      envelope: the rest of the file around the tensors.
      name: the argument's name, for messages.

    Returns:
      The entries of the envelope that were not written, since they need other people's code.

    Raises:
      InputError: if it cannot be written, or torch is needed and not installed.
    """
    if format == "safetensors":
        files = needed("safetensors.numpy", what=f"{name}: a safetensors file")
        contiguous = {key: np.array(array, order="C") for key, array in tensors.items()}
        content = files.save(contiguous, metadata=dict(envelope.metadata or {}) or None)
        write_bytes(local_path(path, name=name), content, name=name)
        return []
    import_torch(name)
    goal = local_path(path, name=name)
    with writing(goal, name=name) as partial:
        with open(partial, "wb") as file:
            left_out = write_torch(file, tensors, envelope, name=name)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, goal)
    return left_out


def write_state_dict(path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], *, name: str = "path") -> None:
    """Writes tensors as a plain file of the format that the suffix names: see `FORMATS`.

    Raises:
      InputError: if the suffix is another, it cannot be written, or torch is needed and not installed.
    """
    suffix = pathlib.Path(path).suffix
    if suffix not in FORMATS:
        raise InputError(f"{name}: expected a file name that ends in one of {sorted(FORMATS)}, found {str(path)!r}")
    metadata = {"format": "pt"}  # layouts are PyTorch's; transformers and others look for this
    write_tensors(path, tensors, format=FORMATS[suffix], envelope=Envelope(metadata=metadata), name=name)


def _read_safetensors(path: pathlib.Path, *, name: str) -> tuple[dict[str, np.ndarray], Mapping[str, str] | None]:
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
    return tensors, metadata
