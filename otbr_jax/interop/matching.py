"""Turns the tensors of a file into the variables of a network, and writes variables in the format of that file."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
from collections.abc import Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from otbr_jax.errors import InputError
from otbr_jax.interop.locating import Location, Shapes, is_complete, locate, same_shape
from otbr_jax.interop.reparametrised import Reparametrised
from otbr_jax.interop.state_dict import from_state_dict, tensor_name, tensor_shape, to_state_dict
from otbr_jax.interop.tensor_files import TensorFile, write_tensors
from otbr_jax.interop.torch_files import Envelope
from otbr_jax.types import Variables, named_leaves

_LOG = logging.getLogger(__name__)
_FLOATS = tuple(np.dtype(kind) for kind in (np.float32, ml_dtypes.bfloat16, np.float16, np.float64))
_BACKDOORBENCH = ("model_name", "num_classes", "model")


class MismatchError(InputError):
    """The tensors of a file are not those of the network."""


class Normalisation(NamedTuple):
    """The input normalisation inside a network, for images in [0, 1]: `(image - mean) / std`, a value per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Slot(NamedTuple):
    """A weight in a file.

    Attributes:
      name: the network's name for it.
      dtype: the file's.
      shape: the file's, which may have other axes of size 1.
      reparametrised: how it is stored in several tensors; None for an ordinary tensor.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    reparametrised: Reparametrised | None = None


@dataclasses.dataclass(frozen=True)
class Template:
    """All of a file but its weights, from which `write_like` writes another.

    Attributes:
      format: 'torch' or 'safetensors'.
      envelope: the rest of the file around the tensors.
      stored: the file's original tensors, by the file's names, in its order.
      slots: weights by the file's names.
      normalisation: the input normalisation inside the file's network; None without.
    """

    format: str
    envelope: Envelope
    stored: Mapping[str, np.ndarray]
    slots: Mapping[str, Slot]
    normalisation: Normalisation | None = None


def load_tensors(file: TensorFile, like: Variables, *, name: str, entry: str = "") -> tuple[Variables, Template]:
    """Returns the variables of a network from a file's tensors, and the template to write such a file again.

    They may lie anywhere in the file, under any prefix, in the spelling of any library of `spellings`, and as pruning
    and weight normalisation store them. Other tensors of a training are ignored. float16, bfloat16 and float64 become
    the network's own dtype, float32. The logger gets one line for each of these.

    Args:
      file: what `read_tensors` returned.
      like: pytree of `jax.ShapeDtypeStruct` that the network expects.
      name: the argument's name, for messages.
      entry: which of several sets of weights, such as `state_dict_ema`; the file's first by default.

    Raises:
      MismatchError: if a tensor is missing, has another shape, or is not the network's; the line names the first.
      InputError: if there is no such entry, or a tensor is not floating-point, holds a NaN or an infinity, or is a
        variance below 0.
    """
    where = f"{name}: {file.path}"
    expected = {tensor_name(leaf): tensor_shape(leaf, spec.shape) for leaf, spec in named_leaves(like).items()}
    place = _choose(locate(file.sets, expected), expected, entry, where=where)
    if problems := _problems(place, expected):
        raise MismatchError(_one_line(where, problems))
    if place.ignored:
        few = ", ".join(place.ignored[:3]) + (f" and {len(place.ignored) - 3} more" if len(place.ignored) > 3 else "")
        _LOG.warning("%s: ignored, since they are not the network's: %s", where, few)
    arrays = {known: place.tensors[stored].reshape(expected[known]) for known, stored in place.names.items()}
    state = _in_float32(arrays, place.names, where=where)
    slots = {
        stored: Slot(known, place.tensors[stored].dtype, place.tensors[stored].shape, place.reparametrised.get(stored))
        for known, stored in place.names.items()
    }
    template = Template(
        file.format,
        file.envelope._replace(entry=place.path),
        file.sets[place.path].tensors,
        slots,
        _normalisation(place, where=where),
    )
    return from_state_dict(state, like), template


def _choose(places: list[Location], expected: Shapes, entry: str, *, where: str) -> Location:
    """The location of that entry, or the best one."""
    complete = [place for place in places if is_complete(place, expected)]
    entries = {place.entry: place for place in reversed(complete or places)}
    if entry:
        if entry not in entries:
            raise InputError(f"{where}: expected an entry of {sorted(entries)}, found {entry!r}")
        return entries[entry]
    others = [place.entry for place in complete[1:] if place.entry != complete[0].entry]
    if others:
        message = "%s: took the weights in %s; the file also holds %s, which %s=%s takes"
        setting = "--entry" if where.startswith("--") else "model.entry"
        _LOG.warning(message, where, complete[0].entry or "its top", " and ".join(others), setting, others[0])
    return places[0]


def _problems(place: Location, expected: Shapes) -> list[str]:
    """Why the tensors are not those of the network, the most important reason first."""
    inside = f" in its entry {'/'.join(place.path)}" if place.path else ""
    problems = []
    for known, shape in expected.items():
        if known not in place.names:
            other = place.others.get(place.prefix + known)
            near = difflib.get_close_matches(known, place.extra, n=1) if not other else []
            actual = other or ("none of that name" + (f", but {near[0]}" if near else ""))
            problems.append(f"expected a tensor {place.prefix}{known} of shape {shape}{inside}, found {actual}")
    problems += [
        f"expected {stored} of shape {expected[known]}, found {place.tensors[stored].shape}"
        for known, stored in place.names.items()
        if not same_shape(place.tensors[stored].shape, expected[known])
    ]
    problems += [
        f"found {stored} {place.tensors[stored].shape}{inside}, which the network does not have"
        for stored in place.extra
    ]
    return problems


def _normalisation(place: Location, *, where: str) -> Normalisation | None:
    if place.normalisation is None:
        return None
    mean, std = place.normalisation
    if not (np.all(np.isfinite(mean)) and np.all(np.isfinite(std)) and np.all(std > 0)):
        raise InputError(f"{where}: expected an input normalisation with a finite mean and a std above 0")
    scale = 255.0 if max(np.max(np.abs(mean)), np.max(std)) > 2 else 1.0  # of networks that take images in 0..255
    normalisation = Normalisation(tuple(map(float, mean / scale)), tuple(map(float, std / scale)))
    message = (
        "%s: normalises its input itself, mean %s and std %s of images in [0, 1]; leave data.mean and data.std empty"
    )
    _LOG.warning(message, where, *(tuple(round(value, 4) for value in values) for values in normalisation))
    return normalisation


def tensors_like(template: Template, variables: Variables, *, name: str = "variables") -> dict[str, np.ndarray]:
    """Returns variables under the names and in the order, layouts and dtypes of the file of `template`.

    Other tensors of the file, such as BatchNorm's counters of batches, are unchanged.

    Raises:
      InputError: if a value has no finite value in the file's dtype (float16 ends at 65504).
    """
    state = to_state_dict(variables)
    changed: dict[str, np.ndarray] = {}
    for stored, slot in template.slots.items():
        with np.errstate(over="ignore"):
            weight = state[slot.name].reshape(slot.shape).astype(slot.dtype)
        if not _is_finite(weight):
            largest = float(np.max(np.abs(state[slot.name])))
            raise InputError(f"{name}: expected values that {slot.dtype} can hold, found {largest:g} in {stored}")
        if slot.reparametrised is None:
            changed[stored] = weight
        else:
            kind, names = slot.reparametrised
            changed |= zip(names, kind.split(weight, tuple(template.stored[name] for name in names)), strict=True)
    return {stored: changed.get(stored, array) for stored, array in template.stored.items()}


def write_like(
    template: Template, variables: Variables, path: str | os.PathLike[str], *, name: str = "variables"
) -> None:
    """Writes variables in the format of the file that they came from: with its other content, names, order and dtypes.

    For BackdoorBench's `attack_result.pt` it writes that toolkit's `defense_result.pt`. Content beside the weights is
    written too, except entries that need other people's code, which one line on the logger names. The file appears
    complete or not at all.

    Raises:
      InputError: if a value does not fit the file's dtype, or `path` cannot be written.
    """
    tensors, envelope = tensors_like(template, variables, name=name), template.envelope
    if is_of_backdoorbench(envelope):
        envelope = envelope._replace(content={key: envelope.content[key] for key in _BACKDOORBENCH})
    left_out = write_tensors(path, tensors, format=template.format, envelope=envelope)
    if left_out:
        _LOG.warning("%s: without %s, which need other people's code", os.fspath(path), ", ".join(left_out[:5]))


def file_name(template: Template) -> str:
    """The name of a repaired network's file; BackdoorBench reads `defense_result.pt`."""
    if is_of_backdoorbench(template.envelope):
        return "defense_result.pt"
    return "repaired.safetensors" if template.format == "safetensors" else "repaired.pt"


def is_of_backdoorbench(envelope: Envelope) -> bool:
    """Whether a file is BackdoorBench's `attack_result.pt`, which also holds the poisoned images."""
    content = envelope.content
    return isinstance(content, dict) and all(key in content for key in _BACKDOORBENCH) and envelope.entry == ("model",)


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
