"""Where in a file the tensors of a network lie: the entry, the prefix, the spelling, and the parts of weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from otbr_jax.interop.parts import Parts, joined
from otbr_jax.interop.spellings import SPELLINGS, respelled
from otbr_jax.interop.torch_files import Path, TensorSet

Shapes = Mapping[str, tuple[int, ...]]

_COUNTER = "num_batches_tracked"
_MEANS = ("mean", "_mean", "mu", "image_mean", "pixel_mean", "img_mean", "means")
_DEVIATIONS = ("std", "_std", "sigma", "image_std", "pixel_std", "img_std", "stds")
_MOST_CHANNELS = 64
_AVERAGES = re.compile(r"ema|average|avg|swa|teacher|momentum|target|shadow", re.IGNORECASE)
# Parts of names that no network computes with: what training, counting and averaging leave beside weights.
_NOT_OF_A_NETWORK = re.compile(
    r"(?:^|\.)(?:\w*criterion\w*|\w*loss\w*|\w*metrics?|\w*_acc(?:uracy)?|acc|accuracy|n_averaged|num_updates|decay|initted"
    r"|total_ops|total_params|_extra_state|\w*optimizer\w*|\w*scheduler\w*)(?:\.|$)"
)


class Located(NamedTuple):
    """Tensors of a network in one set of a file.

    Attributes:
      path: where in the file the set lies.
      prefix: what stands before the network's names.
      tensors: arrays by the file's names, with whole weights in the places of parts.
      parts: how those weights are held.
      found: the file's names by the network's.
      counters: BatchNorm's, by the file's names.
      passed: what is no part of any network, or of another one in the same set; by the file's names.
      extra: what is left, which the network does not have.
      normalisation: mean and standard deviation that the file's network subtracts and divides its input by.
      wrong: how many of the found have another shape.
      others: what of the set is no array, in words.
    """

    path: Path
    prefix: str
    tensors: Mapping[str, np.ndarray]
    parts: Mapping[str, Parts]
    found: Mapping[str, str]
    counters: tuple[str, ...]
    passed: tuple[str, ...]
    extra: tuple[str, ...]
    normalisation: tuple[np.ndarray, np.ndarray] | None
    wrong: int
    others: Mapping[str, str]

    @property
    def entry(self) -> str:
        """A name for where it is, such as `state_dict/model`."""
        return "/".join((*self.path, *([self.prefix.rstrip(".")] if self.prefix else [])))


def same_shape(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two shapes are the same but for axes of size 1, which libraries have or have not."""
    return [size for size in one if size != 1] == [size for size in other if size != 1]


def locate(sets: Mapping[Path, TensorSet], expected: Shapes) -> list[Located]:
    """Where the tensors of a network can lie in a file, the best place first.

    Complete places come first, of which those that are no average of weights and lie less deep; then the others, by how
    many of the network's names they hold.

    Args:
      sets: the tensors of a file by where they lie.
      expected: the network's names and shapes.
    """
    places = [place for path, each in sets.items() for place in _in_set(path, each, expected)]

    def merit(place: Located) -> tuple[object, ...]:
        missing = len(expected) - len(place.found) + place.wrong
        averaged = bool(_AVERAGES.search(place.entry))
        return (missing > 0, missing, len(place.extra), averaged, len(place.path), len(place.prefix), place.prefix)

    return sorted(places, key=merit)


def is_complete(place: Located, expected: Shapes) -> bool:
    """Whether all of a network's tensors are there, in its shapes."""
    return len(place.found) == len(expected) and not place.wrong


def names_by_spelling(sets: Mapping[Path, TensorSet]) -> list[frozenset[str]]:
    """The names of whole tensors of each set of a file, in each spelling that is known."""
    wholes = [joined(each.tensors)[0] for each in sets.values()]
    return [frozenset(respelled(whole, rules).values()) for whole in wholes for rules in SPELLINGS]


def hold_all(names: frozenset[str], expected: Shapes) -> bool:
    """Whether all of a network's names stand behind one prefix; otherwise no place that `locate` finds is complete."""
    first = next(iter(expected))
    prefixes = {name.removesuffix(first) for name in names if name.endswith(first)}
    return any(all(prefix + name in names for name in expected) for prefix in prefixes)


def known_shapes(place: Located) -> dict[str, tuple[int, ...]]:
    """Shapes by the names that the network knows; what it does not have under the file's names."""
    shapes = {known: place.tensors[stored].shape for known, stored in place.found.items()}
    return shapes | {stored: place.tensors[stored].shape for stored in place.extra}


def _in_set(path: Path, each: TensorSet, expected: Shapes) -> Iterator[Located]:
    """The best spelling for each prefix under which most of what any holds is."""
    whole, parts = joined(each.tensors)
    best: dict[str, Located] = {}
    for rules in SPELLINGS:
        modern = respelled(whole, rules)
        counts = _prefixes(modern.values(), expected)
        most = max(counts.values())
        for prefix, count in counts.items():
            if (count < most and count < len(expected)) or not (count or prefix == ""):
                continue
            others = [other for other, there in counts.items() if other != prefix and 2 * there > len(expected)]
            place = _place(path, prefix, others, modern, whole, parts, each.others, expected)
            if prefix not in best or len(place.found) > len(best[prefix].found):
                best[prefix] = place
    yield from best.values()


def _prefixes(modern: Iterable[str], expected: Shapes) -> dict[str, int]:
    """How many of the network's names stand behind each prefix."""
    names = frozenset(modern)
    candidates = {""}
    for name in names:
        parts = name.split(".", 6)[:-1]  # no tool nests deeper, and names are not to be trusted
        candidates.update(".".join(parts[: depth + 1]) + "." for depth in range(len(parts)))
    likely = [prefix for prefix in candidates if prefix == "" or any(prefix + name in names for name in expected)]
    return {prefix: sum(prefix + name in names for name in expected) for prefix in likely}


def _place(
    path: Path,
    prefix: str,
    others: list[str],
    modern: Mapping[str, str],
    whole: Mapping[str, np.ndarray],
    parts: Mapping[str, Parts],
    no_arrays: Mapping[str, str],
    expected: Shapes,
) -> Located:
    found: dict[str, str] = {}
    counters, passed, extra = [], [], []
    statistics: dict[str, str] = {}
    for stored, name in modern.items():
        known = name.removeprefix(prefix) if name.startswith(prefix) else ""
        if known in expected and known not in found:
            found[known] = stored
        elif stored.endswith(_COUNTER) and whole[stored].size == 1:
            counters.append(stored)
        elif _is_statistic(name, whole[stored]):
            statistics[name] = stored
        elif _passes(name, prefix, others) and not _may_be_of_the_input(name, whole[stored], prefix):
            passed.append(stored)
        else:
            extra.append(stored)
    normalisation, rest = _normalisation(statistics, whole)
    wrong = sum(not same_shape(whole[stored].shape, expected[known]) for known, stored in found.items())
    return Located(
        path,
        prefix,
        whole,
        parts,
        found,
        tuple(counters),
        (*passed, *(stored for name, stored in statistics.items() if stored not in rest)),
        (*extra, *rest),
        normalisation,
        wrong,
        no_arrays,
    )


def _is_statistic(name: str, array: np.ndarray) -> bool:
    last = name.rpartition(".")[2]
    return last in (*_MEANS, *_DEVIATIONS) and array.size <= _MOST_CHANNELS and array.dtype.kind == "f"


def _may_be_of_the_input(name: str, array: np.ndarray, prefix: str) -> bool:
    """Whether it has a value for each colour and lies beside the network, as what is done to its input does."""
    colours = [size for size in array.shape if size != 1] == [3]
    return colours and array.dtype.kind == "f" and not name.startswith(prefix) and not _NOT_OF_A_NETWORK.search(name)


def _normalisation(
    statistics: Mapping[str, str], whole: Mapping[str, np.ndarray]
) -> tuple[tuple[np.ndarray, np.ndarray] | None, list[str]]:
    """The one pair of mean and deviation among what looks like such; and what is left over."""
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


def _passes(name: str, prefix: str, others: list[str]) -> bool:
    """Whether a tensor that the network does not have can be left where it is."""
    if _NOT_OF_A_NETWORK.search(name) or any(
        other and name.startswith(other) and not prefix.startswith(other) for other in others
    ):
        return True
    if name.startswith(prefix):
        return False
    # Modules with numbers for names run one after another: what is beside the network then computes with it.
    beside = name.split(".")[prefix.count(".") - 1 : prefix.count(".")]
    return not (prefix.rstrip(".").rpartition(".")[2].isdigit() and beside and beside[0].isdigit())
