"""Slots: which indices of which axes must permute together, united by the operations of a network.

A *slot* is the identity of one index of one axis. Operations unite slots that must permute together, and state two
relations between those that need not: a *product* slot is an index of several axes flattened into one, the child of
each of its factors; a *block* slot stands for several others (an attention head, a group of channels), which are its
children. Moving a slot moves its children.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from otbr_jax.graph.graph import Axis, Group


class Label(NamedTuple):
    """Slots of some axes of a value: `ids[i, j, ...]` is the slot of index (i, j, ...) of `axes` (ascending)."""

    axes: tuple[int, ...]
    ids: np.ndarray

    def rename_axes(self, axes: Mapping[int, int]) -> Label:
        """The label of the same slots on other axes."""
        names = [axes[axis] for axis in self.axes]
        order = np.argsort(names)
        return Label(tuple(names[i] for i in order), self.ids.transpose(order))

    def at(self, axis: int, index: Any) -> Label | None:
        """The label at `index` (a number, a slice or an array) of `axis`; None if no axis is left."""
        where = self.axes.index(axis)
        ids = self.ids[(slice(None),) * where + (index,)]
        axes = self.axes if ids.ndim == self.ids.ndim else self.axes[:where] + self.axes[where + 1 :]
        return Label(axes, ids) if axes else None


class CannotMergeError(Exception):
    """Two values share axes in a way that slots cannot express."""


class Slots:
    """Union-find over slots, with products and blocks."""

    def __init__(self) -> None:
        self._up = np.arange(1024)
        self._count = 0
        self._factors: dict[int, tuple[int, ...]] = {}
        self._products: dict[tuple[int, ...], int] = {}
        self._blocks: dict[int, list[int]] = {}
        self._parents: dict[int, list[int]] = {}
        self._children: dict[int, list[int]] = {}
        self._pinned: list[np.ndarray] = []

    def new(self, shape: tuple[int, ...], *, pinned: bool = False) -> np.ndarray:
        """Fresh slots; `pinned` ones (pixels, classes, fixed constants) have an order with a meaning."""
        size = int(np.prod(shape))
        start, self._count = self._count, self._count + size
        while self._count > len(self._up):
            self._up = np.concatenate([self._up, np.arange(len(self._up), 2 * len(self._up))])
        ids = np.arange(start, self._count).reshape(shape)
        if pinned:
            self.pin(ids)
        return ids

    def pin(self, ids: np.ndarray) -> None:
        """States that these slots may not change places."""
        self._pinned.append(np.ravel(ids))

    def pinned(self) -> set[int]:
        """The roots of all pinned slots."""
        return set(self.roots(np.concatenate(self._pinned)).tolist()) if self._pinned else set()

    def roots(self, ids: np.ndarray) -> np.ndarray:
        """The representative of every slot's class; same shape as `ids`."""
        roots = self._up[ids]
        while not np.array_equal(above := self._up[roots], roots):
            roots = above
        self._up[ids] = roots
        return roots

    def root(self, slot: int) -> int:
        """The representative of one slot's class."""
        while self._up[slot] != slot:
            slot = int(self._up[slot])
        return slot

    def unite(self, a: np.ndarray, b: np.ndarray) -> None:
        """Unites slots one by one; `a` and `b` have equally many."""
        first, second = self.roots(np.ravel(a)), self.roots(np.ravel(b))
        for x, y in zip(first[first != second].tolist(), second[first != second].tolist(), strict=True):
            low, high = sorted((self.root(x), self.root(y)))
            if low != high:
                self._up[high] = low
                if high in self._parents:
                    self._parents.setdefault(low, []).extend(self._parents.pop(high))

    # --- products and blocks ---------------------------------------------------------------------------------

    def product(self, *factors: np.ndarray) -> np.ndarray:
        """The slots of index combinations: `[a, b, ...]` for factors of shapes `[a]`, `[b]`, ..."""
        flat = [np.ravel(factor).tolist() for factor in factors]
        shape = tuple(size for factor in factors for size in np.shape(factor))
        fixed = self.pinned()
        if all(fixed.issuperset(self.roots(np.ravel(factor)).tolist()) for factor in factors):
            return self.new(shape, pinned=True)
        return np.array([self._product(combination) for combination in itertools.product(*flat)]).reshape(shape)

    def _product(self, combination: Iterable[int]) -> int:
        atoms = tuple(atom for slot in combination for atom in self.factors(slot))
        key = tuple(sorted(self.root(atom) for atom in atoms))
        if key not in self._products:
            slot = int(self.new(()))
            self._products[key] = slot
            self._factors[slot] = atoms
            for atom in dict.fromkeys(key):
                self._adopt(atom, [slot])
        return self._products[key]

    def factors(self, slot: int) -> tuple[int, ...]:
        """The slots of which a slot is the product; itself if it is none."""
        return self._factors.get(slot, (slot,))

    def set_apart(self, ids: np.ndarray) -> None:
        """States that these slots may only change places among themselves: they are children of a pinned slot."""
        self._adopt(int(self.new((1,), pinned=True)[0]), np.unique(self.roots(np.ravel(ids))).tolist())

    def _adopt(self, parent: int, children: Sequence[int]) -> None:
        self._children.setdefault(parent, []).extend(children)
        for child in children:
            self._parents.setdefault(self.root(child), []).append(parent)

    def block(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """One slot for each row of slots: the row's common slot or parent if it has one, else a new parent."""
        roots = [list(dict.fromkeys(self.roots(np.ravel(row)).tolist())) for row in rows]
        if all(len(row) == 1 for row in roots):
            return np.array([row[0] for row in roots])
        common = [set.intersection(*(self.parent_roots(slot) for slot in row)) for row in roots]
        if len(common) > 1:
            shared = set.intersection(*common)  # a part of an axis that holds all rows
            common = [parents - shared for parents in common]
        if all(len(parents) == 1 for parents in common) and len(set().union(*common)) == len(rows):
            return np.array([next(iter(parents)) for parents in common])
        blocks = self.new((len(rows),))
        for slot, row in zip(blocks.tolist(), roots, strict=True):
            self._blocks[slot] = row
            self._adopt(slot, row)
        return blocks

    def parent_roots(self, root: int) -> set[int]:
        """The parents of a class, by its root."""
        return {self.root(parent) for parent in self._parents.get(root, [])}

    # --- labels ----------------------------------------------------------------------------------------------

    def join(self, labels: Sequence[Label]) -> Label:
        """One label over the axes of all (their axes are disjoint): products where there are several."""
        if len(labels) == 1:
            return labels[0]
        ids = self.product(*(label.ids for label in labels))
        axes = [axis for label in labels for axis in label.axes]
        return Label(tuple(range(len(axes))), ids).rename_axes(dict(enumerate(axes)))

    def merge(self, left: Sequence[Label], right: Sequence[Label]) -> list[Label]:
        """The labels of two values of the same axes that are combined element by element."""
        result, waiting = [], [*((label, 0) for label in left), *((label, 1) for label in right)]
        while waiting:
            component = [waiting.pop(0)]
            axes = set(component[0][0].axes)
            while touching := [entry for entry in waiting if axes & set(entry[0].axes)]:
                for entry in touching:
                    waiting = [other for other in waiting if other is not entry]
                    component.append(entry)
                    axes |= set(entry[0].axes)
            a, b = ([label for label, side in component if side == wanted] for wanted in (0, 1))
            result.extend([self._match(self.join(a), self.join(b))] if a and b else [*a, *b])
        return result

    def _match(self, a: Label, b: Label) -> Label:
        """Unites two labels; where one is coarser than the other its slots become the parents of the other's."""
        if a.axes == b.axes:
            return Label(a.axes, self._match_ids(a.ids, b.ids))
        if set(a.axes) < set(b.axes):
            self.unite(a.ids, self.reduce(b, set(b.axes) - set(a.axes)).ids)
            return b
        if set(b.axes) < set(a.axes):
            self.unite(b.ids, self.reduce(a, set(a.axes) - set(b.axes)).ids)
            return a
        raise CannotMergeError

    def _match_ids(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        first, second = self.roots(np.ravel(a)), self.roots(np.ravel(b))
        if np.array_equal(first, second):
            return a
        pairs = len(set(zip(first.tolist(), second.tolist(), strict=True)))
        classes, other = len(np.unique(first)), len(np.unique(second))
        if classes < other == pairs:
            fine, coarse, ids = second, first, b
        elif other < classes == pairs:
            fine, coarse, ids = first, second, a
        else:
            self.unite(a, b)
            return a
        parents = np.unique(coarse)
        self.unite(parents, self.block([fine[coarse == parent] for parent in parents]))
        return ids

    def reduce(self, label: Label, gone: set[int]) -> Label:
        """The label without the axes `gone` (at least one is left): blocks of the slots along them."""
        kept = tuple(axis for axis in label.axes if axis not in gone)
        if len(kept) == len(label.axes):
            return label
        order = [label.axes.index(axis) for axis in kept] + [i for i, axis in enumerate(label.axes) if axis in gone]
        ids = label.ids.transpose(order)
        shape = ids.shape[: len(kept)]
        return Label(kept, self.block(list(ids.reshape(int(np.prod(shape)), -1))).reshape(shape))

    # --- the result ------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Unites products of the same factors and blocks of the same slots, which may have become equal since."""
        changed = True
        while changed:
            changed = False
            first: dict[Any, int] = {}
            keys = [(tuple(sorted(self.root(atom) for atom in key)), slot) for key, slot in self._products.items()]
            blocks = [(frozenset(self.root(child) for child in row), slot) for slot, row in self._blocks.items()]
            for key, slot in [*keys, *blocks]:
                slot = self.root(slot)
                if (same := self.root(first.setdefault(key, slot))) != slot:
                    self.unite(np.array([same]), np.array([slot]))
                    changed = True

    def families(self) -> tuple[dict[int, list[int]], dict[int, set[int]]]:
        """`(children, parents)` of every class by its root, children in order of creation."""
        children: dict[int, dict[int, None]] = {}
        parents: dict[int, set[int]] = {}
        for parent, below in self._children.items():
            above = self.root(parent)
            for child in (self.root(slot) for slot in below):
                if child != above:
                    children.setdefault(above, {})[child] = None
                    parents.setdefault(child, set()).add(above)
        return {slot: list(below) for slot, below in children.items()}, parents


def groups(
    slots: Slots, arrays: Mapping[tuple[str, int], np.ndarray], neuron_axes: set[tuple[str, int]]
) -> tuple[Group, ...]:
    """Slots that appear in the same way on the same axes may change places: they form a group.

    Args:
      slots: closed (`Slots.close`).
      arrays: `{(array, axis): roots [size]}`.
      neuron_axes: the axes that hold neurons; a group appears on at least one.
    """
    children, parents = slots.families()
    fixed = slots.pinned()
    appearances: dict[int, list[tuple[tuple[str, int], int]]] = {}
    for where, roots in arrays.items():
        for index, root in enumerate(roots.tolist()):
            appearances.setdefault(root, []).append((where, index))

    members: dict[Any, list[tuple[int, list[int]]]] = {}
    for slot in dict.fromkeys((*appearances, *children)):
        family = _descendants(slot, children)
        if fixed.isdisjoint(family):
            # Two slots are alike if their families are in the same order on every axis, and all members of their
            # families have the same parents outside of them.
            order: dict[tuple[str, int], list[tuple[int, int]]] = {}
            for ordinal, member in enumerate(family):
                for where, index in appearances.get(member, ()):
                    order.setdefault(where, []).append((index, ordinal))
            outside = tuple(frozenset(parents.get(member, set()) - set(family)) for member in family)
            pattern = tuple((where, tuple(ordinal for _, ordinal in sorted(order[where]))) for where in sorted(order))
            if neuron_axes & order.keys():
                members.setdefault((outside, pattern), []).append((slot, family))

    result = []
    for (_, pattern), alike in members.items():
        neuron_of = {member: i for i, (_, family) in enumerate(alike) for member in family}
        disjoint = len(neuron_of) == sum(len(family) for _, family in alike)
        if len(alike) > 1 and disjoint:
            axes = [
                Axis(name, axis, tuple(neuron_of.get(root, -1) for root in arrays[name, axis].tolist()))
                for (name, axis), _ in pattern
            ]
            result.append(Group(len(alike), tuple(axes)))
    return tuple(result)


def _descendants(slot: int, children: Mapping[int, Sequence[int]]) -> list[int]:
    family = {slot: None}
    waiting = [slot]
    while waiting:
        for child in children.get(waiting.pop(0), ()):
            if child not in family:
                family[child] = None
                waiting.append(child)
    return list(family)
