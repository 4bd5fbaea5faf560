"""Locates the tensors of a network in a file: the entry, the prefix, the spelling, and reparametrised weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from otbr_jax.interop.reparametrised import Reparametrised, join_weights
from otbr_jax.interop.spellings import SPELLINGS, respell
from otbr_jax.interop.torch_files import Path, TensorSet

Shapes = Mapping[str, tuple[int, ...]]

_COUNTER = "num_batches_tracked"
_MEANS = ("mean", "_mean", "mu", "image_mean", "pixel_mean", "img_mean", "means")
_DEVIATIONS = ("std", "_std", "sigma", "image_std", "pixel_std", "img_std", "stds")
_MOST_CHANNELS = 64
_AVERAGES = re.compile(r"ema|average|avg|swa|teacher|momentum|target|shadow", re.IGNORECASE)
# Parts of names of tensors that no network computes with: training, counting and averaging leave them beside weights.
_NOT_OF_A_NETWORK = re.compile(
    r"(?:^|\.)(?:\w*criterion\w*|\w*loss\w*|\w*metrics?|\w*_acc(?:uracy)?|acc|accuracy|n_averaged|num_updates|decay|initted"
    r"|total_ops|total_params|_extra_state|\w*optimizer\w*|\w*scheduler\w*)(?:\.|$)"
)


class Location(NamedTuple):
    """Tensors of a network in one set of a file.

    Attributes:
      path: where in the file the set lies.
      prefix: the prefix of the network's names.
      tensors: arrays by the file's names, with whole weights in place of the tensors that they are computed from.
      reparametrised: how those weights are stored.
      names: the file's names by the network's.
      counters: BatchNorm's, by the file's names.
      ignored: tensors that belong to no network, or to another one in the same set; by the file's names.
      extra: the other tensors, which the network does not have.
      normalisation: mean and standard deviation of the input normalisation inside the file's network.
      wrong: how many tensors have another shape than the network's.
      others: the entries of the set that are no arrays, in words.
    """

    path: Path
    prefix: str
    tensors: Mapping[str, np.ndarray]
    reparametrised: Mapping[str, Reparametrised]
    names: Mapping[str, str]
    counters: tuple[str, ...]
    ignored: tuple[str, ...]
    extra: tuple[str, ...]
    normalisation: tuple[np.ndarray, np.ndarray] | None
    wrong: int
    others: Mapping[str, str]

    @property
    def entry(self) -> str:
        """A name for where it is, such as `state_dict/model`."""
        return "/".join((*self.path, *([self.prefix.rstrip(".")] if self.prefix else [])))


def same_shape(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two shapes are the same but for axes of size 1, in which libraries differ."""
    return [size for size in one if size != 1] == [size for size in other if size != 1]


def locate(sets: Mapping[Path, TensorSet], expected: Shapes) -> list[Location]:
    """The possible locations of a network's tensors in a file, the best first.

    Complete ones come first: raw weights before averaged ones, then those that lie less deep. The others follow, by how
    many of the network's names they hold.

    Args:
      sets: the tensors of a file by where they lie.
      expected: the network's names and shapes.
    """
    places = [place for path, each in sets.items() for place in _in_set(path, each, expected)]

    def merit(place: Location) -> tuple[object, ...]:
        missing = len(expected) - len(place.names) + place.wrong
        averaged = bool(_AVERAGES.search(place.entry))
        return (missing > 0, missing, len(place.extra), averaged, len(place.path), len(place.prefix), place.prefix)

    return sorted(places, key=merit)


def is_complete(place: Location, expected: Shapes) -> bool:
    """Whether all of a network's tensors are there, in its shapes."""
    return len(place.names) == len(expected) and not place.wrong


def names_by_spelling(sets: Mapping[Path, TensorSet]) -> list[frozenset[str]]:
    """The names of whole tensors of each set of a file, in each spelling that is known."""
    wholes = [join_weights(each.tensors)[0] for each in sets.values()]
    return [frozenset(respell(whole, rules).values()) for whole in wholes for rules in SPELLINGS]


def hold_all(names: frozenset[str], expected: Shapes) -> bool:
    """Whether all of a network's names stand behind one prefix; otherwise no place that `locate` finds is complete."""
    first = next(iter(expected))
    prefixes = {name.removesuffix(first) for name in names if name.endswith(first)}
    return any(all(prefix + name in names for name in expected) for prefix in prefixes)


def known_shapes(place: Location) -> dict[str, tuple[int, ...]]:
    """Shapes by the network's names; those of extra tensors by the file's names."""
    shapes = {known: place.tensors[stored].shape for known, stored in place.names.items()}
    return shapes | {stored: place.tensors[stored].shape for stored in place.extra}


def _in_set(path: Path, each: TensorSet, expected: Shapes) -> Iterator[Location]:
    """The best spelling for each prefix that holds the most of the network's names."""
    whole, reparametrised = join_weights(each.tensors)
    best: dict[str, Location] = {}
    for rules in SPELLINGS:
        modern = respell(whole, rules)
        counts = _prefixes(modern.values(), expected)
        most = max(counts.values())
        for prefix, count in counts.items():
            if (count < most and count < len(expected)) or not (count or prefix == ""):
                continue
            others = [other for other, there in counts.items() if other != prefix and 2 * there > len(expected)]
            place = _place(path, prefix, others, modern, whole, reparametrised, each.others, expected)
            if prefix not in best or len(place.names) > len(best[prefix].names):
                best[prefix] = place
    yield from best.values()


def _prefixes(modern: Iterable[str], expected: Shapes) -> dict[str, int]:
    """How many of the network's names each prefix has."""
    names = frozenset(modern)
    candidates = {""}
    for name in names:
        parts = name.split(".", 6)[:-1]  # no tool nests deeper, and names may be hostile
        candidates.update(".".join(parts[: depth + 1]) + "." for depth in range(len(parts)))
    likely = [prefix for prefix in candidates if prefix == "" or any(prefix + name in names for name in expected)]
    return {prefix: sum(prefix + name in names for name in expected) for prefix in likely}


def _place(
    path: Path,
    prefix: str,
    others: list[str],
    modern: Mapping[str, str],
    whole: Mapping[str, np.ndarray],
    reparametrised: Mapping[str, Reparametrised],
    no_arrays: Mapping[str, str],
    expected: Shapes,
) -> Location:
    names: dict[str, str] = {}
    counters, ignored, extra = [], [], []
    statistics: dict[str, str] = {}
    for stored, name in modern.items():
        known = name.removeprefix(prefix) if name.startswith(prefix) else ""
        if known in expected and known not in names:
            names[known] = stored
        elif stored.endswith(_COUNTER) and whole[stored].size == 1:
            counters.append(stored)
        elif _is_statistic(name, whole[stored]):
            statistics[name] = stored
        elif _is_ignored(name, prefix, others) and not _may_be_of_the_input(name, whole[stored], prefix):
            ignored.append(stored)
        else:
            extra.append(stored)
    normalisation, rest = _normalisation(statistics, whole)
    wrong = sum(not same_shape(whole[stored].shape, expected[known]) for known, stored in names.items())
    return Location(
        path,
        prefix,
        whole,
        reparametrised,
        names,
        tuple(counters),
        (*ignored, *(stored for name, stored in statistics.items() if stored not in rest)),
        (*extra, *rest),
        normalisation,
        wrong,
        no_arrays,
    )


def _is_statistic(name: str, array: np.ndarray) -> bool:
    last = name.rpartition(".")[2]
    return last in (*_MEANS, *_DEVIATIONS) and array.size <= _MOST_CHANNELS and array.dtype.kind == "f"


def _may_be_of_the_input(name: str, array: np.ndarray, prefix: str) -> bool:
    """Whether a tensor has a value for each colour and lies beside the network, so it may normalise the input."""
    colours = [size for size in array.shape if size != 1] == [3]
    return colours and array.dtype.kind == "f" and not name.startswith(prefix) and not _NOT_OF_A_NETWORK.search(name)


def _normalisation(
    statistics: Mapping[str, str], whole: Mapping[str, np.ndarray]
) -> tuple[tuple[np.ndarray, np.ndarray] | None, list[str]]:
    """The only pair of mean and deviation among the candidates, if there is one, and the other candidates."""
    pairs = []
    for name, stored in statistics.items():
        head, _, last = name.rpartition(".")
        if last in _MEANS:
            partner = f"{head}." * bool(head) + _DEVIATIONS[_MEANS.index(last)]
            if partner in statistics:
                pairs.append((stored, statistics[partner]))
    if len(pairs) != 1:
        return None, [*statistics.values()]
    mean, deviation = pairs[0]
    values = whole[mean].reshape(-1).astype(np.float32), whole[deviation].reshape(-1).astype(np.float32)
    return values, [stored for stored in statistics.values() if stored not in (mean, deviation)]


def _is_ignored(name: str, prefix: str, others: list[str]) -> bool:
    """Whether a tensor that the network does not have can be ignored."""
    if _NOT_OF_A_NETWORK.search(name) or any(
        other and name.startswith(other) and not prefix.startswith(other) for other in others
    ):
        return True
    if name.startswith(prefix):
        return False
    # Modules with numbers for names run one after another: a tensor beside the network then takes part in it.
    beside = name.split(".")[prefix.count(".") - 1 : prefix.count(".")]
    return not (prefix.rstrip(".").rpartition(".")[2].isdigit() and beside and beside[0].isdigit())
