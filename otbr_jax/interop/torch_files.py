"""Reads PyTorch's checkpoints, which are pickles, without executing anything in them; and writes them."""

from __future__ import annotations

import _compat_pickle
import collections
import contextlib
import io
import pathlib
import pickletools
import warnings
import zipfile
from collections.abc import Mapping
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from otbr_jax.errors import InputError
from otbr_jax.extras import needed
from otbr_jax.interop.unpickle import Foreign, is_an_attack, module_tensors, stand_in, to_plain_data

_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_SCANNED = 1 << 24
_DEEPEST_SET = 4  # entries of entries of the file
_LONGEST = 50  # entries of a list
_MOST_SETS = 200
Path = tuple[str, ...]


class Envelope(NamedTuple):
    """The rest of a file around a set of tensors.

    Attributes:
      content: all of a PyTorch file, as it was read; None if the file holds only the set.
      entry: where in it the set lies, by the keys of its dictionaries.
      metadata: a safetensors file's metadata.
    """

    content: Any = None
    entry: Path = ()
    metadata: Mapping[str, str] | None = None


class TensorSet(NamedTuple):
    """Named tensors that lie together.

    Attributes:
      tensors: arrays by name, in the file's order, layouts and dtypes (bfloat16 is that of `ml_dtypes`).
      others: the entries that are no tensors, in words.
    """

    tensors: Mapping[str, np.ndarray]
    others: Mapping[str, str] = {}


def is_torch_file(path: pathlib.Path) -> bool:
    """Whether `torch.save` wrote the file: it is a zip archive with a pickle, or the pickles of before 1.6."""
    with open(path, "rb") as file:
        if _LEGACY_MAGIC in file.read(64):
            return True
    return _pickle(path) is not None


def read_torch(path: pathlib.Path, *, name: str) -> tuple[dict[Path, TensorSet], Envelope]:
    """Returns the sets of tensors in a file of `torch.save` by where they lie, and all of its content.

    The file may be hostile: only PyTorch's weights-only unpickler reads it, and stand-ins (`unpickle`) replace all
    classes and functions beside tensors, so that nothing in it is executed.

    Args:
      path: a state dict, a dictionary with one in it up to three levels down, or a pickled module.
      name: the argument's name, for messages.

    Raises:
      InputError: if torch is not installed, the file is damaged or compressed, it asks for a name that only an attack
        needs (the message says which), or it holds no tensors.
    """
    torch = import_torch(name)
    if _is_torchscript(path):
        raise InputError(f"{name}: {path} is a TorchScript program, which is code; expected a file of its tensors")
    if (size := _unpacked_size(path)) > path.stat().st_size:  # torch.save does not compress
        raise InputError(f"{name}: {path} is refused: it is compressed, and would unpack to {size:,} bytes")
    names = map(_of_python_3, pickled_names(io.BytesIO(_pickle_of(path))))
    unknown = [each for each in names if each not in _known(torch)]
    if attack := next((each for each in unknown if is_an_attack(each)), None):
        raise InputError(
            f"{name}: {path} is refused: its pickle asks for {attack}, which no checkpoint has a use for and which was "
            "not run; do not open this file by other means"
        )
    stand_ins = [(stand_in(each), each) for each in dict.fromkeys(unknown)]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.simplefilter("ignore")  # about old formats
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{name}: {path} {_why_refused(error)}") from None
    sets: dict[Path, TensorSet] = {}
    _collect(loaded, (), sets, torch)
    if not sets:
        what = _kind(loaded)
        if isinstance(loaded, dict):
            what = f"a dictionary of {', '.join(str(key) for key in list(dict.keys(loaded))[:8]) or 'nothing'}"
        raise InputError(f"{name}: {path}: expected named tensors, such as a state dict, found {what}")
    return sets, Envelope(loaded)


def write_torch(file: IO[bytes], tensors: Mapping[str, np.ndarray], envelope: Envelope, *, name: str) -> list[str]:
    """Writes a set of tensors in its envelope with `torch.save`; returns the entries that were not written.

    Raises:
      InputError: if torch is not installed.
    """
    torch = import_torch(name)
    state = collections.OrderedDict((key, _to_torch(array, torch)) for key, array in tensors.items())
    left_out: list[str] = []
    if not isinstance(envelope.content, dict | list | tuple):
        torch.save(state, file)
        return left_out
    content = to_plain_data(_with_entry(envelope.content, envelope.entry, state), left_out)
    torch.save(content, file)
    return left_out


def _with_entry(content: Any, entry: Path, state: Mapping[str, Any]) -> Any:
    """The content with another set of tensors in place of the old one; other entries stay."""
    if type(content) in (list, tuple) and entry:
        place = int(entry[0])
        return type(content)((*content[:place], _with_entry(content[place], entry[1:], state), *content[place + 1 :]))
    if isinstance(content, Foreign) or not isinstance(content, dict):
        return state
    kept = collections.OrderedDict(dict.items(content))
    if entry:
        place = next(key for key in kept if str(key) == entry[0])
        kept[place] = _with_entry(kept[place], entry[1:], state)
        return kept if isinstance(content, collections.OrderedDict) else dict(kept)
    kept.update(state)
    return kept


def _collect(value: Any, path: Path, sets: dict[Path, TensorSet], torch: Any) -> None:
    """Collects the sets of tensors in loaded content."""
    if len(sets) >= _MOST_SETS:
        return
    if isinstance(value, Foreign):
        value = module_tensors(value)
    entries = _entries(value)
    tensors: dict[str, np.ndarray] = {}
    others: dict[str, str] = {}
    for key, entry in entries.items():
        if not isinstance(entry, torch.Tensor):
            others[key] = _kind(entry)
            continue
        try:
            if entry.numel() * entry.element_size() > entry.untyped_storage().nbytes():
                raise ValueError("its shape is larger than its storage")
            tensors[key] = _to_numpy(entry, torch)
        except Exception:
            others[key] = f"a tensor of {entry.dtype}, {entry.layout}"
    if tensors and isinstance(value, dict):
        sets[path] = TensorSet(tensors, others)
    if len(path) < _DEEPEST_SET - 1:
        for key, entry in entries.items():
            if isinstance(entry, dict | list | tuple | Foreign):
                _collect(entry, (*path, key), sets, torch)


def _entries(value: Any) -> dict[str, Any]:
    """The entries of a dictionary by key, or of a list by place, without calling methods that a pickle may replace."""
    if isinstance(value, dict):
        return {str(key): entry for key, entry in dict.items(value)}
    return {str(place): entry for place, entry in enumerate(value[:_LONGEST])} if type(value) in (list, tuple) else {}


def _of_python_3(name: str) -> str:
    """The current name for one in a pickle of an old protocol, such as `builtins.eval` for `__builtin__.eval`."""
    module, _, last = name.rpartition(".")
    module, last = _compat_pickle.NAME_MAPPING.get((module, last), (module, last))
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{last}"


def _known(torch: Any) -> frozenset[str]:
    """The names that PyTorch's weights-only unpickler allows by itself."""
    return frozenset(torch._weights_only_unpickler._get_allowed_globals())


def import_torch(name: str) -> Any:
    """Returns the torch package, which is optional; raises InputError that says how to install it."""
    return needed("torch", what=f"{name}: a PyTorch file")


def pickled_names(file: IO[bytes]) -> list[str]:
    """The names that the first pickles in a file ask for, such as `posix.system`, without running them."""
    names: list[str] = []
    with contextlib.suppress(Exception):  # the end of the pickles, or of what is well-formed
        for _ in range(4):  # a file of before 1.6 starts with three small ones
            strings: list[str] = []
            memo: list[str] = []
            last = ""
            for operation, argument, _position in pickletools.genops(file):
                if operation.name in ("GLOBAL", "INST"):
                    names.append(str(argument).replace(" ", "."))
                elif operation.name == "STACK_GLOBAL":
                    names.append(".".join(strings[-2:]))
                elif operation.name == "MEMOIZE":
                    memo.append(last)
                last = argument if isinstance(argument, str) else ""
                if operation.name in ("BINGET", "LONG_BINGET") and isinstance(argument, int) and argument < len(memo):
                    last = memo[argument]
                if last:
                    strings.append(last)
    return names


def _pickle(path: pathlib.Path) -> bytes | None:
    """The start of the pickle in a zip archive of `torch.save`; None if it is no such archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            if member is None:
                return None
            with archive.open(member) as pickle:
                return pickle.read(_SCANNED)
    except Exception:  # an archive may be broken in many ways
        return None


def _unpacked_size(path: pathlib.Path) -> int:
    """What the entries of a zip archive claim to hold, in bytes; 0 for other files."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except Exception:  # an archive may be broken in many ways
        return 0


def _pickle_of(path: pathlib.Path) -> bytes:
    """The start of the pickle that would be loaded."""
    pickle = _pickle(path)
    if pickle is None:
        with open(path, "rb") as file:
            pickle = file.read(_SCANNED)
    return pickle


def _is_torchscript(path: pathlib.Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # an archive may be broken in many ways
        return False


def _why_refused(error: Exception) -> str:
    """One clause on why `torch.load` refused a file."""
    lines = [line.removeprefix("WeightsUnpickler error: ") for line in str(error).split("\n") if line.strip()]
    noise = ("Weights only load", "Please file an issue", "(1)", "(2)")
    reasons = [line.strip() for line in lines if not line.lstrip().startswith(noise)]
    return f"is no readable PyTorch checkpoint ({reasons[0][:200] if reasons else type(error).__name__})"


def _to_numpy(tensor: Any, torch: Any) -> np.ndarray:
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # which numpy alone does not know
        return np.asarray(tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    return np.asarray(tensor.numpy())


def _to_torch(array: np.ndarray, torch: Any) -> Any:
    copy = np.array(array, order="C")
    if copy.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(copy.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(copy)


def _kind(value: Any) -> str:
    if isinstance(value, Foreign):
        return f"a {value.what}"
    return f"a value of type {type(value).__name__}"
