"""The tensors of a file as the variables of a network, and changed variables as a file like it."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from otbr_jax.errors import InputError
from otbr_jax.interop.state_dict import from_state_dict, tensor_name, tensor_shape, to_state_dict
from otbr_jax.interop.tensor_files import TensorFile, write_tensors
from otbr_jax.interop.torch_files import Envelope
from otbr_jax.types import Variables, named_leaves

_LOG = logging.getLogger(__name__)
_COUNTER = "num_batches_tracked"
_FLOATS = tuple(np.dtype(kind) for kind in (np.float32, ml_dtypes.bfloat16, np.float16, np.float64))
_OLD_SPELLINGS = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),  # DenseNets of torchvision before 0.3
    (re.compile(r"(\bmlp)\.linear_1\."), r"\1.0."),  # vision transformers of torchvision before 0.14
    (re.compile(r"(\bmlp)\.linear_2\."), r"\1.3."),
)


class MismatchError(InputError):
    """The tensors of a file are not those of the network."""


class Slot(NamedTuple):
    """One tensor of a file: the network's name for it and its dtype, or its value if the network has no such array."""

    name: str
    dtype: np.dtype
    value: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Template:
    """All of a file but its weights: what `write_like` needs to write another.

    Attributes:
      format: 'torch' or 'safetensors'.
      envelope: what surrounds the tensors.
      slots: the file's tensors by the file's names (with its prefix and spelling), in its order.
    """

    format: str
    envelope: Envelope
    slots: Mapping[str, Slot]


def load_tensors(file: TensorFile, like: Variables, *, name: str) -> tuple[Variables, Template]:
    """Returns the variables of a network from a file's tensors, and the template to write such a file again.

    Names may share a prefix (`module.`, `_orig_mod.`, `1.`) and be spelled as in old versions of torchvision. float16,
    bfloat16 and float64 become the network's own dtype, float32, which one line on the logger says.

    Args:
      file: what `read_tensors` returned.
      like: pytree of `jax.ShapeDtypeStruct` that the network expects.
      name: the argument's name, for messages.

    Raises:
      MismatchError: if a tensor is missing, has another shape, or is not the network's; the line names the first.
      InputError: if a tensor is not floating-point, holds a NaN or an infinity, or is a variance below 0.
    """
    where = f"{name}: {file.path}"
    expected = {tensor_name(leaf): tensor_shape(leaf, spec.shape) for leaf, spec in named_leaves(like).items()}
    prefix = find_prefix(file.tensors, expected)
    slots: dict[str, Slot] = {}
    found: dict[str, str] = {}
    extra: list[str] = []
    for stored, array in file.tensors.items():
        known = _known_name(stored, prefix)
        if known in expected and known not in found:
            found[known] = stored
            slots[stored] = Slot(known, array.dtype)
        elif stored.endswith(_COUNTER) and array.ndim == 0 and array.dtype.kind == "i":
            slots[stored] = Slot("", array.dtype, array)
        else:
            extra.append(stored)
    problems = [
        f"expected a tensor {prefix}{known} of shape {shape}, found none of that name"
        for known, shape in expected.items()
        if known not in found
    ]
    problems += [
        f"expected {stored} of shape {expected[known]}, found {file.tensors[stored].shape}"
        for known, stored in found.items()
        if file.tensors[stored].shape != expected[known]
    ]
    problems += [f"found {stored} {file.tensors[stored].shape}, which the network does not have" for stored in extra]
    if problems:
        raise MismatchError(_one_line(where, problems))
    state = _in_float32({known: file.tensors[stored] for known, stored in found.items()}, found, where=where)
    return from_state_dict(state, like), Template(file.format, file.envelope, slots)


def tensors_like(template: Template, variables: Variables, *, name: str = "variables") -> dict[str, np.ndarray]:
    """Returns variables under the names and in the order, layouts and dtypes of the file that `template` is of.

    BatchNorm's counters of batches are the file's own.

    Raises:
      InputError: if a value has no finite value in the file's dtype (float16 ends at 65504).
    """
    state = to_state_dict(variables)
    tensors = {}
    for stored, slot in template.slots.items():
        if slot.value is not None:
            tensors[stored] = slot.value
            continue
        with np.errstate(over="ignore"):
            tensors[stored] = state[slot.name].astype(slot.dtype)
        if not _is_finite(tensors[stored]):
            largest = float(np.max(np.abs(state[slot.name])))
            raise InputError(f"{name}: expected values that {slot.dtype} can hold, found {largest:g} in {stored}")
    return tensors


def write_like(
    template: Template, variables: Variables, path: str | os.PathLike[str], *, name: str = "variables"
) -> None:
    """Writes variables as a file like the one they came from: format, surroundings, names, order and dtypes.

    Of BackdoorBench's `attack_result.pt` it makes what that toolkit calls `defense_result.pt`. Entries next to a state
    dict are kept if they are plain values; an optimizer's state is not. The file appears at once or not at all.

    Raises:
      InputError: if a value does not fit the file's dtype, or `path` cannot be written.
    """
    tensors = tensors_like(template, variables, name=name)
    write_tensors(path, tensors, format=template.format, envelope=template.envelope)


def file_name(template: Template) -> str:
    """What a repaired network's file is called: BackdoorBench looks for `defense_result.pt`."""
    if template.envelope.key == "model" and "model_name" in template.envelope.entries:
        return "defense_result.pt"
    return "repaired.safetensors" if template.format == "safetensors" else "repaired.pt"


def find_prefix(stored: Iterable[str], expected: Iterable[str]) -> str:
    """Returns what stands before the network's names in a file, the shortest that explains most; often empty."""
    modern = {_modern_spelling(name) for name in stored}
    wanted = list(expected)
    candidates = {""}
    for name in modern:
        parts = name.split(".", 6)[:-1]  # no tool nests deeper, and names are not to be trusted
        candidates.update(".".join(parts[: depth + 1]) + "." for depth in range(len(parts)))
    in_order = sorted(candidates, key=lambda prefix: (len(prefix), prefix))
    return max(in_order, key=lambda prefix: sum(prefix + name in modern for name in wanted))


def known_shapes(tensors: Mapping[str, np.ndarray], expected: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of a file's tensors by the names a network that has `expected` knows, counters of batches left out."""
    prefix = find_prefix(tensors, expected)
    return {
        _known_name(stored, prefix): array.shape for stored, array in tensors.items() if not stored.endswith(_COUNTER)
    }


def _known_name(stored: str, prefix: str) -> str:
    return _modern_spelling(stored).removeprefix(prefix)


def _modern_spelling(name: str) -> str:
    for old, new in _OLD_SPELLINGS:
        name = old.sub(new, name)
    return name


def _in_float32(
    tensors: Mapping[str, np.ndarray], stored_names: Mapping[str, str], *, where: str
) -> dict[str, np.ndarray]:
    """Tensors of any floating dtype in float32; raises InputError for other dtypes and impossible values."""
    kinds = {known: array.dtype for known, array in tensors.items()}
    problems = [
        f"expected floating-point weights, found {kind} in {stored_names[known]}"
        for known, kind in kinds.items()
        if kind not in _FLOATS
    ]
    if problems:
        raise InputError(_one_line(where, problems))
    with np.errstate(over="ignore"):
        single = {known: array.astype(np.float32, copy=False) for known, array in tensors.items()}
    problems = [
        f"expected variances from 0 on, found {float(array.min()):g} in {stored_names[known]}"
        for known, array in single.items()
        if known.endswith("running_var") and array.size and array.min() < 0
    ]
    problems += [
        f"expected finite weights, found {int(np.sum(~np.isfinite(array)))} NaN or infinite values in "
        f"{stored_names[known]}"
        for known, array in single.items()
        if not _is_finite(array)
    ]
    if problems:
        raise InputError(_one_line(where, problems))
    other = sorted({kind.name for kind in kinds.values() if kind != np.float32})
    if other:
        count = sum(kind != np.float32 for kind in kinds.values())
        names = " and ".join(other)
        message = "%s: %d of %d tensors are %s; computed in float32, and %s again in a file written back"
        _LOG.warning(message, where, count, len(kinds), names, names)
    return single


def _is_finite(array: np.ndarray) -> bool:
    return bool(np.all(np.isfinite(array)))


def _one_line(where: str, problems: list[str]) -> str:
    more = f"; also {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"{where}: {problems[0]}{more}"
