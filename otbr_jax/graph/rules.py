"""Rules of JAX operations on slots, one for each primitive that changes axes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
import numpy as np

from otbr_jax.errors import InputError
from otbr_jax.graph.evaluate import compute
from otbr_jax.graph.slots import CannotMergeError, Label, Slots


@dataclasses.dataclass(frozen=True)
class Value:
    """What is known of one array in the jaxpr.

    Attributes:
      labels: slots of its axes; the axes of different labels are disjoint, an axis without slots is in none.
      kernel: name of the array of the variables that it equals, in some layout or precision; None after other
        operations.
      data: whether it depends on the images.
      params: whether it depends on the variables.
      layers: indices of the layers it passed through.
      depth: number of them on the longest path.
      known: the array itself, of a small constant such as an index.
    """

    labels: tuple[Label, ...] = ()
    kernel: str | None = None
    data: bool = False
    params: bool = False
    layers: frozenset[int] = frozenset()
    depth: int = 0
    known: np.ndarray | None = None


class Kernel(NamedTuple):
    """A kernel in use: see `otbr_jax.graph.graph.Layer`; `inputs` are slots if they are more than the input axes'."""

    name: str
    kind: str
    neuron_axes: tuple[int, ...]
    input_axes: tuple[int, ...]
    inputs: np.ndarray | None = None


class Tracing:
    """The state of a walk through a jaxpr."""

    def __init__(self) -> None:
        self.slots = Slots()
        self.arrays: dict[str, tuple[np.ndarray, ...]] = {}
        self.kernels: list[Kernel] = []
        self.side: set[int] = set()
        self.where = "unknown source line"

    # --- values from nothing ---------------------------------------------------------------------------------

    def parameter(self, name: str, shape: tuple[int, ...]) -> Value:
        """An array of the variables: a slot for every index of every axis."""
        self.arrays[name] = tuple(self.slots.new((size,)) for size in shape)
        labels = tuple(Label((axis,), ids) for axis, ids in enumerate(self.arrays[name]))
        return Value(labels, kernel=name, params=True)

    def image(self, shape: tuple[int, ...]) -> Value:
        """The images: rows, columns and channels stay where they are."""
        return Value(self.fixed(shape, range(1, len(shape))), data=True)

    def constant(self, value: Any) -> Value:
        """A constant: an axis along which it varies cannot be permuted."""
        if not isinstance(getattr(value, "dtype", np.dtype(int)), np.dtype):
            return Value()  # random keys
        array = np.asarray(value)
        known = array if array.size <= _SMALL else None
        varying = [axis for axis in range(array.ndim) if not _all_equal(array, array.take([0], axis))]
        return Value(self.fixed(array.shape, varying), known=known)

    def fixed(self, shape: Sequence[int], axes: Sequence[int]) -> tuple[Label, ...]:
        """Labels of pinned slots on the given axes of a value of this shape."""
        return tuple(Label((axis,), self.slots.new((shape[axis],), pinned=True)) for axis in axes)

    # --- combining -------------------------------------------------------------------------------------------

    def combine(self, operands: Sequence[Value], labels: Sequence[Label]) -> Value:
        """The result of an operation on `operands`, with its labels; no longer a plain kernel."""
        return Value(
            tuple(labels),
            data=any(o.data for o in operands),
            params=any(o.params for o in operands),
            layers=frozenset().union(*(o.layers for o in operands)),
            depth=max((o.depth for o in operands), default=0),
        )

    def is_neuron(self, label: Label) -> bool:
        """Whether any of the label's slots is, or is part of, a neuron of a layer met so far."""
        own = [self.arrays[kernel.name][axis] for kernel in self.kernels for axis in kernel.neuron_axes]
        known = set(self.slots.roots(np.concatenate(own)).tolist()) if own else set()
        waiting = set(self.slots.roots(np.ravel(label.ids)).tolist())
        while waiting:
            if waiting & known:
                return True
            waiting = set().union(*(self.slots.parent_roots(slot) for slot in waiting))
        return False

    def pin(self, value: Value, axes: Sequence[int], what: str, eqn: Any) -> list[Label]:
        """The labels of `value` once the given axes' order has a meaning; raises InputError where they hold neurons."""
        for label in value.labels:
            if set(label.axes) <= set(axes) and self.is_neuron(label):
                raise self.cannot(what, eqn)
        shape = {axis: size for label in value.labels for axis, size in zip(label.axes, label.ids.shape, strict=True)}
        present = [axis for axis in axes if axis in shape]
        return self.slots.merge(value.labels, [Label((a,), self.slots.new((shape[a],), pinned=True)) for a in present])

    def set_part_apart(self, labels: Sequence[Label], axis: int, index: slice) -> None:
        """States that a part of an axis is treated separately: its slots permute among themselves alone."""
        for label in labels:
            if axis in label.axes and (part := label.at(axis, index)) is not None:
                self.slots.set_apart(part.ids)

    def mark_side_path(self, a: Value, b: Value, *, gate: bool) -> None:
        """Of two branches that are added, the one through fewer layers is a shortcut; multiplied, the other a gate."""
        if a.depth == b.depth:
            return
        longer, shorter = (a, b) if a.depth > b.depth else (b, a)
        self.side |= (longer.layers - shorter.layers) if gate else (shorter.layers - longer.layers)

    # --- layers ----------------------------------------------------------------------------------------------

    def own_slots(self, name: str, axes: Sequence[int]) -> np.ndarray:
        """The slots of an array's index combinations along `axes`, row-major `[product of sizes]`."""
        own = [self.arrays[name][axis] for axis in axes]
        return own[0] if len(own) == 1 else np.ravel(self.slots.product(*own))

    def axes_of(self, name: str, labels: Sequence[Label]) -> tuple[int, ...]:
        """Which of the array's own axes the labels of a view of it stand for."""
        first = np.array([slot for label in labels for slot in self.slots.factors(int(np.ravel(label.ids)[0]))])
        return tuple(axis for axis, ids in enumerate(self.arrays[name]) if np.isin(first, ids).any())

    def layer(self, kernel: Kernel, images: Value, labels: Sequence[Label]) -> Value:
        """Registers a layer (a shared kernel is one layer, however often it is used) and returns its output."""
        known = [(k.name, k.neuron_axes, k.input_axes) for k in self.kernels]
        key = (kernel.name, kernel.neuron_axes, kernel.input_axes)
        if key not in known:
            known.append(key)
            self.kernels.append(kernel)
        layers = images.layers | {known.index(key)}
        return Value(tuple(labels), data=True, params=True, layers=layers, depth=images.depth + 1)

    def cannot(self, what: str, eqn: Any) -> InputError:
        """The error for an equation that cannot be followed, with its source line."""
        equation = " ".join(str(eqn).split())
        short = equation if len(equation) <= 200 else f"{equation[:200]}..."
        return InputError(f"network: cannot follow {what}, in `{short}` ({self.where}); state the neuron graph by hand")


def follow(state: Tracing, eqn: Any, operands: Sequence[Value]) -> list[Value]:
    """The results of one equation; raises InputError if there is no rule for it."""
    name = eqn.primitive.name
    if not any(operand.data or operand.params for operand in operands):
        varies = name not in _UNIFORM or any(operand.labels for operand in operands)
        shapes = [out.aval.shape for out in eqn.outvars]
        if all(operand.known is not None for operand in operands) and all(np.prod(s) <= _SMALL for s in shapes):
            return [state.constant(value) for value in _evaluate_constants(eqn, operands)]
        return [Value(state.fixed(s, [a for a in range(len(s)) if s[a] > 1]) if varies else ()) for s in shapes]
    if name in _RULES:
        results = _RULES[name](state, eqn, *operands)
        return results if isinstance(results, list) else [results]
    if name in _ELEMENTWISE:
        return [_elementwise(state, eqn, operands)]
    raise state.cannot(f"neurons through the operation {name!r}", eqn)


def _all_equal(one: np.ndarray, other: np.ndarray) -> bool:
    # NaN is not equal to itself.
    return bool(np.all((one == other) | ((one != one) & (other != other))))


_SMALL = 4096  # elements: an index has fewer, an activation more


def _evaluate_constants(eqn: Any, operands: Sequence[Value]) -> list[Any]:
    """The results of an equation for known constants."""
    with jax.ensure_compile_time_eval():
        return compute(eqn, [operand.known for operand in operands])


# --- rules --------------------------------------------------------------------------------------------------------


def _elementwise(state: Tracing, eqn: Any, operands: Sequence[Value]) -> Value:
    shape = eqn.outvars[0].aval.shape
    full = []
    for operand, atom in zip(operands, eqn.invars, strict=True):
        if len(atom.aval.shape) == len(shape):
            # An axis of size 1 is broadcast: its slot says nothing about the other side's.
            grown = [axis for axis, size in enumerate(shape) if atom.aval.shape[axis] != size]
            whole = operand.kernel if not grown else None
            full.append(dataclasses.replace(operand, labels=tuple(_without(operand.labels, grown)), kernel=whole))
    full.sort(key=lambda operand: operand.kernel is None)
    labels: list[Label] = reduce(lambda merged, operand: state.slots.merge(merged, operand.labels), full, [])
    branches = [operand for operand in operands if operand.data]
    if eqn.primitive.name in ("add", "add_any", "sub", "mul") and len(branches) == 2:
        state.mark_side_path(*branches, gate=eqn.primitive.name == "mul")
    result = state.combine(operands, labels)
    # A kernel that is cast, scaled or standardised is still that kernel; the sum of two is neither.
    names = {operand.kernel for operand in full if operand.kernel}
    return dataclasses.replace(result, kernel=names.pop()) if len(names) == 1 and not result.data else result


def _convolution(state: Tracing, eqn: Any, images: Value, kernel: Value) -> Value:
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    if not images.data or (kernel.params and kernel.kernel is None) or eqn.params["batch_group_count"] > 1:
        raise state.cannot("a convolution whose kernel is computed", eqn)
    channel, spatial = numbers.lhs_spec[1], numbers.lhs_spec[2:]
    in_shape, out_shape = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    labels = state.slots.merge(images.labels, state.fixed(in_shape, spatial))
    image_labels = state.fixed(out_shape, numbers.out_spec[2:])
    if (images_of := _only(labels, numbers.lhs_spec[0])) is not None:
        image_labels = (*image_labels, Label((numbers.out_spec[0],), images_of))
    channels = _only(labels, channel)
    neurons, inputs = _only(kernel.labels, numbers.rhs_spec[0]), _only(kernel.labels, numbers.rhs_spec[1])
    out_channels, per_group = out_shape[numbers.out_spec[1]] // groups, in_shape[channel] // groups

    if not kernel.params:
        if per_group == out_channels == 1 and channels is not None:  # a fixed filter on every channel, such as a blur
            if neurons is not None:
                state.slots.unite(channels, neurons)
            passed = [Label((numbers.out_spec[1],), channels)]
            return state.combine((images,), (*passed, *image_labels))
        state.pin(images, (channel,), "a convolution of neurons with a constant", eqn)
        return state.combine((images,), (*state.fixed(out_shape, (numbers.out_spec[1],)), *image_labels))
    if neurons is None or inputs is None or kernel.kernel is None:
        raise state.cannot("a convolution whose kernel is computed", eqn)

    if groups == 1:
        state.slots.merge(labels, [Label((channel,), inputs)])
        kind = "conv"
    else:
        if channels is None:
            raise state.cannot(f"a convolution in {groups} groups", eqn)
        rows = channels.reshape(groups, per_group)
        block = state.slots.block(list(rows))
        if per_group > 1:
            state.slots.unite(rows, state.slots.product(block, inputs))
        state.slots.unite(block, state.slots.block(list(neurons.reshape(groups, out_channels))))
        kind = "depthwise" if per_group == 1 else "grouped"
    out_axes, in_axes = (state.axes_of(kernel.kernel, [Label((0,), ids)]) for ids in (neurons, inputs))
    used = Kernel(kernel.kernel, kind, out_axes, in_axes, inputs=channels if groups > 1 else None)
    return state.layer(used, images, (Label((numbers.out_spec[1],), neurons), *image_labels))


def _only(labels: Sequence[Label], axis: int) -> np.ndarray | None:
    """The slots of an axis that shares its label with no other axis."""
    for label in labels:
        if axis in label.axes:
            if len(label.axes) > 1:
                raise CannotMergeError
            return label.ids
    return None


def _dot_general(state: Tracing, eqn: Any, lhs: Value, rhs: Value) -> Value:
    """A product of broadcast arrays, summed over the contracted axes."""
    contract, batch = eqn.params["dimension_numbers"]
    paired = [*zip(*batch, strict=True), *zip(*contract, strict=True)]
    free = [
        [axis for axis in range(len(atom.aval.shape)) if axis not in (*contract[side], *batch[side])]
        for side, atom in enumerate(eqn.invars)
    ]
    # Axes of the broadcast product: pairs first, then the free ones of either side.
    names = [{pair[side]: i for i, pair in enumerate(paired)} for side in (0, 1)]
    names[0] |= {axis: len(paired) + i for i, axis in enumerate(free[0])}
    names[1] |= {axis: len(paired) + len(free[0]) + i for i, axis in enumerate(free[1])}
    together = state.slots.merge(
        [label.rename_axes(names[0]) for label in lhs.labels], [label.rename_axes(names[1]) for label in rhs.labels]
    )
    contracted = set(range(len(batch[0]), len(paired)))
    kept = [axis for axis in range(len(paired) + len(free[0]) + len(free[1])) if axis not in contracted]
    place = {axis: i for i, axis in enumerate(kept)}
    labels = [
        state.slots.reduce(label, contracted).rename_axes(place)
        for label in together
        if not contracted.issuperset(label.axes)
    ]
    side = 0 if rhs.data else 1
    images, kernel = (rhs, lhs) if side == 0 else (lhs, rhs)
    if not images.data or kernel.data or not kernel.params or not free[side]:
        return state.combine((lhs, rhs), labels)  # attention scores, fixed projections, a vector of weights
    neurons = [label for label in kernel.labels if set(label.axes) <= set(free[side])]
    inputs = [label for label in kernel.labels if set(label.axes) <= set(contract[side])]
    complete = sum(len(label.axes) for label in (*neurons, *inputs)) == len(free[side]) + len(contract[side])
    if kernel.kernel is None or not complete or batch[side]:
        raise state.cannot("a dense layer whose kernel is computed", eqn)
    own = (state.axes_of(kernel.kernel, neurons), state.axes_of(kernel.kernel, inputs))
    return state.layer(Kernel(kernel.kernel, "dense", *own), images, labels)


def _transpose(state: Tracing, eqn: Any, x: Value) -> Value:
    place = {axis: i for i, axis in enumerate(eqn.params["permutation"])}
    return dataclasses.replace(x, labels=tuple(label.rename_axes(place) for label in x.labels))


def _broadcast(state: Tracing, eqn: Any, x: Value, *_: Value) -> Value:
    place = dict(enumerate(eqn.params["broadcast_dimensions"]))
    shape = eqn.invars[0].aval.shape
    grown = [axis for axis, out in place.items() if shape[axis] != eqn.params["shape"][out]]
    return state.combine((x,), [label.rename_axes(place) for label in _without(x.labels, grown)])


def _without(labels: Sequence[Label], axes: Sequence[int]) -> list[Label]:
    """The labels without axes of size 1."""
    result = []
    for label in labels:
        left: Label | None = label
        for axis in axes:
            if left is not None and axis in left.axes:
                left = left.at(axis, 0)
        if left is not None:
            result.append(left)
    return result


def _squeeze(state: Tracing, eqn: Any, x: Value) -> Value:
    rank = len(eqn.invars[0].aval.shape)
    gone = [axis % rank for axis in eqn.params["dimensions"]]
    place = {axis: i for i, axis in enumerate(axis for axis in range(rank) if axis not in gone)}
    return dataclasses.replace(x, labels=tuple(label.rename_axes(place) for label in _without(x.labels, gone)))


def _expand_dims(state: Tracing, eqn: Any, x: Value) -> Value:
    rank = len(eqn.outvars[0].aval.shape)
    new = [axis % rank for axis in eqn.params["dimensions"]]
    place = dict(enumerate(axis for axis in range(rank) if axis not in new))
    return dataclasses.replace(x, labels=tuple(label.rename_axes(place) for label in x.labels))


def _reshape(state: Tracing, eqn: Any, x: Value, *_: Value) -> Value:
    """Changes runs of axes whose sizes have the same product, last run first, so that earlier axes keep their place."""
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if eqn.params.get("dimensions") is not None:
        place = {axis: i for i, axis in enumerate(eqn.params["dimensions"])}
        x = dataclasses.replace(x, labels=tuple(label.rename_axes(place) for label in x.labels))
        before = tuple(before[axis] for axis in eqn.params["dimensions"])
    labels = list(x.labels)
    for old, new in reversed(_runs(before, after)):
        if [before[axis] for axis in old] != [after[axis] for axis in new]:
            labels = _reshape_run(
                state, labels, (*before[: old.stop], *after[new.stop :]), old, [after[axis] for axis in new]
            )
    return dataclasses.replace(x, labels=tuple(labels))


def _runs(before: Sequence[int], after: Sequence[int]) -> list[tuple[range, range]]:
    """The shortest runs of axes, before and after a reshape, that hold equally many elements."""
    runs, i, j = [], 0, 0
    while i < len(before) and j < len(after):
        start, first, size, other = i, j, before[i], after[j]
        i, j = i + 1, j + 1
        while size != other:
            if size < other:
                size, i = size * before[i], i + 1
            else:
                other, j = other * after[j], j + 1
        runs.append((range(start, i), range(first, j)))
    if i < len(before) or j < len(after):  # what is left has size 1
        start, first = (runs[-1][0].start, runs[-1][1].start) if runs else (0, 0)
        runs[-1:] = [(range(start, len(before)), range(first, len(after)))]
    return runs


def _reshape_run(
    state: Tracing, labels: Sequence[Label], shape: Sequence[int], run: range, sizes: Sequence[int]
) -> list[Label]:
    """The labels once the axes `run` of a value of that `shape` have become axes of the given sizes."""
    shift = len(sizes) - len(run)
    place = {axis: axis if axis < run.stop else axis + shift for axis in range(len(shape))}
    touched = [label for label in labels if set(label.axes) & set(run)]
    result = [label.rename_axes(place) for label in labels if not set(label.axes) & set(run)]
    touched = _without(touched, [axis for axis in run if shape[axis] == 1])
    if not touched:
        return result
    joint = state.slots.join(touched)
    others = [axis for axis in joint.axes if axis not in run]
    order = [joint.axes.index(axis) for axis in (*others, *(axis for axis in joint.axes if axis in run))]
    ids = joint.ids.transpose(order)
    outside = ids.shape[: len(others)]
    ids = ids.reshape(*outside, *(shape[axis] if axis in joint.axes else 1 for axis in run))
    ids = np.broadcast_to(ids, (*outside, *(shape[axis] for axis in run))).reshape(*outside, *sizes)
    axes = [place[axis] for axis in others] + [run.start + i for i in range(len(sizes))]
    for position in reversed(range(len(others), len(axes))):
        first = ids.take([0], position)
        if np.array_equal(np.broadcast_to(first, ids.shape), ids):  # the same slots all along: the axis has no label
            ids = first.squeeze(position)
            del axes[position]
    if state.slots.pinned().issuperset(state.slots.roots(np.ravel(ids)).tolist()):
        return [
            *result,
            *(Label((a,), state.slots.new((n,), pinned=True)) for a, n in zip(axes, ids.shape, strict=True)),
        ]
    return [*result, Label(tuple(range(len(axes))), ids).rename_axes(dict(enumerate(axes)))]


def _reduce(state: Tracing, eqn: Any, x: Value, *_: Value) -> Value:
    gone = set(eqn.params["axes"])
    if eqn.primitive.name in ("argmax", "argmin"):
        x = dataclasses.replace(x, labels=tuple(state.pin(x, tuple(gone), "the number of a neuron", eqn)))
    place = {axis: i for i, axis in enumerate(a for a in range(len(eqn.invars[0].aval.shape)) if a not in gone)}
    left = [state.slots.reduce(label, gone) for label in x.labels if not gone.issuperset(label.axes)]
    return state.combine((x,), [label.rename_axes(place) for label in left])


def _window(state: Tracing, eqn: Any, x: Value, *_: Value) -> Value:
    """Pooling over axes without neurons."""
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    pooled = [
        axis for axis, size in enumerate(eqn.params["window_dimensions"]) if size > 1 or before[axis] != after[axis]
    ]
    labels = state.pin(x, pooled, "pooling across neurons", eqn)
    left = [state.slots.reduce(label, set(pooled)) for label in labels if not set(pooled).issuperset(label.axes)]
    return state.combine((x,), [*left, *state.fixed(after, pooled)])


def _along_axis(state: Tracing, eqn: Any, x: Value, *_: Value) -> Value:
    """Cumulative sums and the like, over an axis without neurons."""
    labels = state.pin(x, (eqn.params["axis"],), f"neurons through the operation {eqn.primitive.name!r}", eqn)
    if not any(eqn.params["axis"] in label.axes for label in labels):
        labels = [*labels, *state.fixed(eqn.outvars[0].aval.shape, [eqn.params["axis"]])]
    return state.combine((x,), labels)


def _pad(state: Tracing, eqn: Any, x: Value, *_: Value) -> Value:
    shape = eqn.outvars[0].aval.shape
    config = eqn.params["padding_config"]
    changed = [axis for axis, padding in enumerate(config) if padding != (0, 0, 0)]
    if any(low < 0 or high < 0 for low, high, _ in config):
        labels = state.pin(x, changed, "neurons through a cropped axis", eqn)
        kept = [label for label in labels if not set(label.axes) & set(changed)]
        return state.combine((x,), [*kept, *state.fixed(shape, changed)])
    labels = []
    for label in x.labels:
        if set(label.axes) & set(changed):
            fixed = state.slots.pinned().issuperset(state.slots.roots(np.ravel(label.ids)).tolist())
            ids = state.slots.new(tuple(shape[axis] for axis in label.axes), pinned=fixed)
            old = []
            for axis, size in zip(label.axes, label.ids.shape, strict=True):
                low, _, step = config[axis]
                old.append(slice(low, low + (size - 1) * (step + 1) + 1, step + 1))
            ids[tuple(old)] = label.ids
            label = Label(label.axes, ids)
        labels.append(label)
    known = {axis for label in labels for axis in label.axes}
    return state.combine((x,), [*labels, *state.fixed(shape, [a for a in changed if a not in known])])


def _take(labels: Sequence[Label], axis: int, index: slice) -> list[Label]:
    parts = [label.at(axis, index) if axis in label.axes else label for label in labels]
    return [label for label in parts if label is not None]


def _slice(state: Tracing, eqn: Any, x: Value) -> Value:
    labels: Sequence[Label] = x.labels
    limits = eqn.params["limit_indices"]
    steps = eqn.params["strides"] or (1,) * len(limits)
    for axis, (start, stop, step) in enumerate(zip(eqn.params["start_indices"], limits, steps, strict=True)):
        if (stop - start, step) != (eqn.invars[0].aval.shape[axis], 1):
            state.set_part_apart(labels, axis, slice(start, stop, step))
        labels = _take(labels, axis, slice(start, stop, step))
    return dataclasses.replace(x, labels=tuple(labels))


def _reverse(state: Tracing, eqn: Any, x: Value) -> Value:
    labels: Sequence[Label] = x.labels
    for axis in eqn.params["dimensions"]:
        labels = _take(labels, axis, slice(None, None, -1))
    return dataclasses.replace(x, labels=tuple(labels))


def _split(state: Tracing, eqn: Any, x: Value) -> list[Value]:
    """One output per part of the split axis; its slots are divided among them."""
    bounds = np.cumsum((0, *eqn.params["sizes"])).tolist()
    for bound in itertools.pairwise(bounds):
        state.set_part_apart(x.labels, eqn.params["axis"], slice(*bound))
    parts = [_take(x.labels, eqn.params["axis"], slice(*bound)) for bound in itertools.pairwise(bounds)]
    return [dataclasses.replace(x, labels=tuple(labels)) for labels in parts]


def _unstack(state: Tracing, eqn: Any, x: Value) -> list[Value]:
    """One output per index of an axis."""
    axis, results = eqn.params["axis"], []
    place = {a: a - (a > axis) for a in range(len(eqn.invars[0].aval.shape))}
    for index in range(eqn.invars[0].aval.shape[axis]):
        state.set_part_apart(x.labels, axis, slice(index, index + 1))
        parts = [label.at(axis, index) if axis in label.axes else label for label in x.labels]
        results.append(
            dataclasses.replace(x, labels=tuple(label.rename_axes(place) for label in parts if label is not None))
        )
    return results


def _stack(state: Tracing, eqn: Any, *operands: Value) -> Value:
    """Values of the same shape along a new axis, whose order has a meaning."""
    axis, shape = eqn.params["axis"], eqn.outvars[0].aval.shape
    place = {a: a + (a >= axis) for a in range(len(shape) - 1)}
    relabelled = [[label.rename_axes(place) for label in operand.labels] for operand in operands]
    labels: list[Label] = reduce(state.slots.merge, relabelled, [])
    return state.combine(operands, [*labels, *state.fixed(shape, [axis])])


def _tile(state: Tracing, eqn: Any, x: Value) -> Value:
    """Repeats a value along an axis."""
    reps = eqn.params["reps"]
    labels = [Label(label.axes, np.tile(label.ids, [reps[axis] for axis in label.axes])) for label in x.labels]
    return state.combine((x,), labels)


def _dynamic_slice(state: Tracing, eqn: Any, x: Value, *starts: Value) -> Value:
    """A part of each axis; if its start is not known, the axis must hold no neurons."""
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    cut = [axis for axis in range(len(before)) if before[axis] != after[axis]]
    if all(starts[axis].known is not None for axis in cut):
        labels: Sequence[Label] = x.labels
        for axis in cut:
            index = _window_at(starts[axis], after[axis], before[axis])
            state.set_part_apart(labels, axis, index)
            labels = _take(labels, axis, index)
        return dataclasses.replace(x, labels=tuple(labels), kernel=None)
    pinned = state.pin(x, cut, "a part of the neurons chosen by a number", eqn)
    left = [label for label in pinned if not set(label.axes) & set(cut)]
    if sum(len(label.axes) for label in pinned if set(label.axes) & set(cut)) > len(cut):
        raise state.cannot("a part of the neurons chosen by a number", eqn)
    return state.combine((x,), [*left, *state.fixed(after, [axis for axis in cut if after[axis] > 1])])


def _window_at(start: Value, size: int, whole: int) -> slice:
    """A window at a known place, which JAX shifts into bounds."""
    assert start.known is not None
    first = min(max(int(start.known), 0), whole - size)
    return slice(first, first + size)


def _dynamic_update_slice(state: Tracing, eqn: Any, x: Value, update: Value, *starts: Value) -> Value:
    """A part of each axis is replaced."""
    whole, part = (atom.aval.shape for atom in eqn.invars[:2])
    cut = [axis for axis in range(len(whole)) if whole[axis] != part[axis]]
    if len(cut) > 1 or any(starts[axis].known is None for axis in cut):
        raise state.cannot("neurons that are put to places chosen by numbers", eqn)
    if not cut:
        return state.combine((x, update), update.labels)
    index = _window_at(starts[cut[0]], part[cut[0]], whole[cut[0]])
    return _place(state, eqn, x, update, cut[0], np.arange(index.start, index.stop))


def _scatter(state: Tracing, eqn: Any, x: Value, indices: Value, update: Value) -> Value:
    """Known places along one axis are replaced, or added to."""
    numbers = eqn.params["dimension_numbers"]
    whole, part = eqn.invars[0].aval.shape, eqn.invars[2].aval.shape
    axes = numbers.scatter_dims_to_operand_dims
    if indices.known is None or len(axes) != 1 or numbers.operand_batching_dims:
        raise state.cannot(f"neurons through the operation {eqn.primitive.name!r} at places chosen by numbers", eqn)
    (axis,) = axes
    firsts = np.ravel(indices.known)
    kept = [other for other in range(len(whole)) if other not in numbers.inserted_window_dims]
    place = dict(zip(numbers.update_window_dims, kept, strict=True))
    if axis in numbers.inserted_window_dims:
        positions = firsts
        rest = [other for other in range(len(part)) if other not in numbers.update_window_dims]
        if len(rest) > 1:
            raise state.cannot(f"neurons through the operation {eqn.primitive.name!r} at a table of places", eqn)
        place |= dict.fromkeys(rest, axis)
    elif len(firsts) == 1:
        size = part[numbers.update_window_dims[kept.index(axis)]]
        index = _window_at(Value(known=firsts[0]), size, whole[axis])
        positions = np.arange(index.start, index.stop)
    else:
        raise state.cannot(f"neurons through the operation {eqn.primitive.name!r} at several windows", eqn)
    relabelled = dataclasses.replace(update, labels=tuple(label.rename_axes(place) for label in update.labels))
    adds = eqn.primitive.name != "scatter"
    return _place(state, eqn, x, relabelled, axis, positions, adds=adds)


def _place(
    state: Tracing, eqn: Any, x: Value, update: Value, axis: int, positions: np.ndarray, *, adds: bool = False
) -> Value:
    """`x` with the update at the given places of an axis, in its place or added to it; labels on `x`'s axes."""
    size = eqn.outvars[0].aval.shape[axis]
    old, new = (next((label for label in value.labels if axis in label.axes), None) for value in (x, update))
    rest = state.slots.merge(
        [label for label in x.labels if axis not in label.axes],
        [label for label in update.labels if axis not in label.axes],
    )
    if any(label is not None and label.axes != (axis,) for label in (old, new)):
        raise state.cannot("neurons put to places along an axis that is split differently", eqn)
    ids = state.slots.new((size,), pinned=x.data or x.params) if old is None else old.ids.copy()
    fresh = state.slots.new((len(positions),), pinned=update.data) if new is None else new.ids
    fresh = np.broadcast_to(fresh, positions.shape)
    if adds and old is not None:
        state.slots.unite(ids[positions], fresh)
    else:
        ids[positions] = fresh
    return state.combine((x, update), [*rest, Label((axis,), ids)])


def _gather(state: Tracing, eqn: Any, x: Value, *indices: Value) -> Value:
    """Keeps whole axes and looks up others, which must hold no neurons unless the places on one axis are known."""
    if (result := _look_up(state, eqn, x, *indices)) is not None:
        return result
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = [axis for axis in range(len(before)) if axis not in gone]
    looked_up = [axis for axis in range(len(before)) if sizes[axis] != before[axis] or axis in gone]
    labels = state.pin(x, looked_up, "neurons that are looked up by a number", eqn)
    if any(set(label.axes) & set(looked_up) and not set(label.axes) <= set(looked_up) for label in labels):
        raise state.cannot("neurons that are looked up by a number", eqn)
    place = dict(zip(kept, numbers.offset_dims, strict=True))
    left = [label.rename_axes(place) for label in labels if not set(label.axes) & set(looked_up)]
    rest = [place[axis] for axis in kept if axis in looked_up and after[place[axis]] > 1]
    rest += [axis for axis in range(len(after)) if axis not in numbers.offset_dims and after[axis] > 1]
    return state.combine((x, *indices), [*left, *state.fixed(after, rest)])


def _look_up(state: Tracing, eqn: Any, x: Value, indices: Value) -> Value | None:
    """The values at known places of one axis; None if they are not known, or on several axes."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    changed = [axis for axis in range(len(before)) if sizes[axis] != before[axis]]
    if indices.known is None or numbers.operand_batching_dims or numbers.start_index_map != tuple(changed):
        return None
    if len(changed) != 1:
        return None
    (axis,) = changed
    kept = [other for other in range(len(before)) if other not in numbers.collapsed_slice_dims]
    place = dict(zip(kept, numbers.offset_dims, strict=True))
    firsts = np.clip(np.ravel(indices.known), 0, before[axis] - sizes[axis])
    rest = [other for other in range(len(after)) if other not in numbers.offset_dims]
    if axis in numbers.collapsed_slice_dims and len(rest) <= 1:
        positions: Any = firsts if rest else int(firsts[0])
        place |= dict.fromkeys((axis,), rest[0]) if rest else {}
    elif axis not in numbers.collapsed_slice_dims and len(firsts) == 1 and not rest:
        positions = np.arange(firsts[0], firsts[0] + sizes[axis])
    else:
        return None
    labels = []
    for label in x.labels:
        if axis in label.axes:
            where = label.axes.index(axis)
            state.slots.set_apart(np.take(label.ids, np.atleast_1d(positions), where))
        part = label.at(axis, positions) if axis in label.axes else label
        if part is not None:
            labels.append(part.rename_axes(place))
    return state.combine((x, indices), labels)


def _concatenate(state: Tracing, eqn: Any, *operands: Value) -> Value:
    joined = eqn.params["dimension"]
    rest: list[Label] = []
    parts: list[Label | None] = []
    for operand in operands:
        rest = state.slots.merge(rest, [label for label in operand.labels if joined not in label.axes])
        parts.append(next((label for label in operand.labels if joined in label.axes), None))
    axes = {label.axes for label in parts if label is not None}
    if not axes:
        return state.combine(operands, [*rest, *state.fixed(eqn.outvars[0].aval.shape, [joined])])
    if len(axes) > 1:
        raise state.cannot("neurons joined along an axis that is split differently", eqn)
    (common,) = axes
    where = common.index(joined)
    pieces = []
    for label, operand, atom in zip(parts, operands, eqn.invars, strict=True):
        shape = tuple(atom.aval.shape[axis] for axis in common)
        # A value without slots is a constant, the same everywhere, or comes from the images.
        pieces.append(
            label.ids if label is not None else state.slots.new(shape, pinned=operand.data or parts.count(None) > 1)
        )
    return state.combine(operands, [*rest, Label(common, np.concatenate(pieces, where))])


def _identity(state: Tracing, eqn: Any, *operands: Value) -> list[Value]:
    return list(operands)


_RULES: Mapping[str, Callable[..., Value | list[Value]]] = {
    "conv_general_dilated": _convolution,
    "dot_general": _dot_general,
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "expand_dims": _expand_dims,
    "reduce_sum": _reduce,
    "reduce_max": _reduce,
    "reduce_min": _reduce,
    "reduce_prod": _reduce,
    "reduce_and": _reduce,
    "reduce_or": _reduce,
    "argmax": _reduce,
    "argmin": _reduce,
    "reduce_window_sum": _window,
    "reduce_window_max": _window,
    "reduce_window_min": _window,
    "reduce_window": _window,
    "cumsum": _along_axis,
    "cumprod": _along_axis,
    "cummax": _along_axis,
    "cumlogsumexp": _along_axis,
    "pad": _pad,
    "slice": _slice,
    "rev": _reverse,
    "split": _split,
    "unstack": _unstack,
    "stack": _stack,
    "tile": _tile,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "scatter": _scatter,
    "scatter-add": _scatter,
    "gather": _gather,
    "concatenate": _concatenate,
    "optimization_barrier": _identity,
}

_ELEMENTWISE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp conj convert_element_type copy cos "
    "cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma log log1p "
    "logistic lt max min mul ne neg nextafter not or pow reduce_precision rem round rsqrt select_n "
    "sharding_constraint sign sin sinh sqrt square stop_gradient sub tan tanh xor".split()
)

# Operations that turn constants with the same value everywhere into another such constant.
_UNIFORM = _ELEMENTWISE | frozenset(
    "broadcast_in_dim dot_general expand_dims reduce_max reduce_min reduce_sum reshape rev slice split squeeze tile "
    "transpose unstack".split()
)
