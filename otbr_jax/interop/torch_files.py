"""PyTorch's checkpoints, which are pickles: read without running anything of theirs, and written."""

from __future__ import annotations

import collections
import contextlib
import io
import pathlib
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from otbr_jax.errors import InputError
from otbr_jax.extras import needed

_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")
_BACKDOORBENCH = ("model_name", "num_classes", "model")
_PLAIN_TYPES = (str, int, float, bool, type(None))
_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_SCANNED = 1 << 24
_USUAL_NAMES = ("torch.", "collections.", "numpy.", "_codecs.", "builtins.set", "builtins.bytearray")
_NUMPY_NAMES = (
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.{core}.multiarray.{what}" for core in ("core", "_core") for what in ("_reconstruct", "scalar")),
)


class Envelope(NamedTuple):
    """What surrounds the tensors in a file.

    Attributes:
      key: the entry of a dictionary that is the state dict; empty if the file is the state dict.
      entries: that dictionary's plain values by name and in order, with None in the place of `key`.
      metadata: a safetensors file's metadata.
    """

    key: str = ""
    entries: Mapping[str, Any] = {}
    metadata: Mapping[str, str] | None = None


class _Skipped:
    """Takes the place of a numpy array: weights are tensors, so that nothing of numpy need run on a file's behalf."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def is_torch_file(path: pathlib.Path) -> bool:
    """Whether the content is what `torch.save` writes: a zip archive with a pickle, or the pickles of before 1.6."""
    with open(path, "rb") as file:
        if _LEGACY_MAGIC in file.read(64):
            return True
    return _pickle(path) is not None


def read_torch(path: pathlib.Path, *, name: str) -> tuple[dict[str, np.ndarray], Envelope]:
    """Returns the tensors of a file of `torch.save`, as stored and in order, and what surrounds them.

    The file may be hostile: only PyTorch's weights-only unpickler reads it, and numpy's arrays (of BackdoorBench's
    `attack_result.pt`) are passed over.

    Args:
      path: a state dict, a dictionary with an entry such as `state_dict` or `model` that is one, or `attack_result.pt`.
      name: the argument's name, for messages.

    Raises:
      InputError: if torch is not installed, the file is damaged, asks for anything but tensors and plain values
        (the line names what), or has no state dict.
    """
    torch = import_torch(name)
    if (size := _unpacked_size(path)) > path.stat().st_size:  # torch.save does not compress
        raise InputError(f"{name}: {path} is refused: it is compressed, and would unpack to {size:,} bytes")
    stand_ins = [(_Skipped, numpy_name) for numpy_name in _NUMPY_NAMES]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.simplefilter("ignore")  # about old formats
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{name}: {path} {_why_refused(error, path)}") from None
    state, envelope = _open_envelope(loaded, where=f"{name}: {path}")
    tensors = {}
    for key, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise InputError(f"{name}: {path}: expected a tensor in the entry {key!r}, found {_kind(value)}")
        try:
            tensors[str(key)] = _to_numpy(value, torch)
        except Exception:
            found = f"{value.dtype}, {value.layout}"
            raise InputError(f"{name}: {path}: expected a dense tensor of numbers in {key}, found {found}") from None
    return tensors, envelope


def write_torch(file: IO[bytes], tensors: Mapping[str, np.ndarray], envelope: Envelope, *, name: str) -> None:
    """Writes a state dict in its envelope with `torch.save`.

    Raises:
      InputError: if torch is not installed.
    """
    torch = import_torch(name)
    state = collections.OrderedDict((key, _to_torch(array, torch)) for key, array in tensors.items())
    torch.save({**envelope.entries, envelope.key: state} if envelope.key else state, file)


def import_torch(name: str) -> Any:
    """Returns the torch package, which is optional; raises InputError that says how to install it."""
    return needed("torch", what=f"{name}: a PyTorch file")


def pickled_names(file: IO[bytes]) -> list[str]:
    """What the first pickles in a file ask for, such as `posix.system`, found without running them."""
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


def _why_refused(error: Exception, path: pathlib.Path) -> str:
    """One clause on why `torch.load` refused a file."""
    text = str(error)
    pickle = _pickle(path)
    if pickle is None:
        with open(path, "rb") as file:
            pickle = file.read(_SCANNED)
    names = pickled_names(io.BytesIO(pickle))
    named = re.search(r"GLOBAL (\S+)", text)
    foreign = [asked for asked in names if not asked.startswith(_USUAL_NAMES)]
    wanted = named[1] if named else foreign[0] if foreign else ""
    if "TorchScript" in text:
        return "is a TorchScript program, not tensors; save model.state_dict() instead"
    if wanted and any(asked.startswith("torch.nn.modules.") for asked in names):
        return f"holds a whole pickled module (it asks for {wanted}), not tensors; save model.state_dict() instead"
    if wanted:
        safe = "it was not run; save model.state_dict() alone"
        return f"is refused: its pickle asks for {wanted}, which no checkpoint of tensors needs; {safe}"
    lines = [line.removeprefix("WeightsUnpickler error: ") for line in text.split("\n") if line.strip()]
    told = [line.strip() for line in lines if not line.lstrip().startswith(("Weights only load", "(1)", "(2)"))]
    return f"is no readable PyTorch checkpoint ({told[0][:200] if told else type(error).__name__})"


def _open_envelope(loaded: Any, *, where: str) -> tuple[dict[str, Any], Envelope]:
    """The state dict in what was loaded, and what surrounds it."""
    if not isinstance(loaded, dict):
        raise InputError(f"{where}: expected a state dict, found {_kind(loaded)}; save model.state_dict()")
    entries = dict(dict.items(loaded))  # a pickle can put attributes such as `items` on an OrderedDict
    if all(key in entries for key in _BACKDOORBENCH) and isinstance(entries["model"], dict):
        kept = {key: entries[key] for key in _BACKDOORBENCH}  # defense_result.pt has no more
        return dict(dict.items(entries["model"])), Envelope("model", _plain(kept, "model"))
    for key in _WRAPPERS:
        if isinstance(entries.get(key), dict):
            return dict(dict.items(entries[key])), Envelope(key, _plain(entries, key))
    if not any(hasattr(value, "layout") for value in entries.values()):
        keys = ", ".join(str(key) for key in list(entries)[:8])
        raise InputError(f"{where}: expected a state dict, found a dictionary without tensors ({keys or 'empty'})")
    return entries, Envelope()


def _plain(entries: Mapping[str, Any], state_key: str) -> dict[str, Any]:
    """The plain values; others, such as an optimizer's state, belong to the network as it was."""
    kept = {key: value for key, value in entries.items() if isinstance(key, str) and type(value) in _PLAIN_TYPES}
    return {key: kept.get(key) for key in entries if key in kept or key == state_key}


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
    return "a numpy array" if isinstance(value, _Skipped) else f"a value of type {type(value).__name__}"
