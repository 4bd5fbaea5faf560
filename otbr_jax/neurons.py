"""Which axis of which array is a neuron, and who feeds whom: found by tracing the network's function.

Every axis of every array in `variables` gets one *slot* per index. Following the jaxpr, operations unite the slots
that must move together: a BatchNorm scale with the channels it scales, the inputs of a kernel with the outputs that
feed it, both sides of an addition. What remains are groups of slots, and each group is one neuron wherever it
appears. No layer's name or class is looked at.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.errors import InputError
from otbr_jax.types import ApplyFn, Variables, named_leaves, replace_leaves


class Vector(NamedTuple):
    """A per-neuron vector (bias, BatchNorm scale, mean, ...): axis `axis` of the array `name`."""

    name: str
    axis: int


class Layer(NamedTuple):
    """One convolution or dense kernel, and where its neurons are.

    Attributes:
      name: the kernel's name in the variables, such as `params/layer1_0/conv1/kernel`.
      kind: `conv`, `depthwise` (neuron i reads channel i alone) or `dense`.
      neuron_axis: axis of the kernel whose indices are the layer's neurons (its outputs).
      input_axis: axis of the kernel whose indices are its inputs.
      neurons: number of neurons.
      inputs: number of inputs.
      fed_by: `{earlier layer: int [inputs]}` in execution order: which of that layer's neurons each input is, -1 if
        none. Several after a residual addition or a concatenation, none for the first layer.
      tied_to: other layers whose neurons are added to this layer's neurons.
      vectors: the per-neuron vectors that belong to this layer's neurons.
      main_path: false for shortcuts (the shorter side of an addition), for gates (the longer side of a
        multiplication) and for layers whose outputs are the network's outputs.
    """

    name: str
    kind: str
    neuron_axis: int
    input_axis: int
    neurons: int
    inputs: int
    fed_by: Mapping[str, tuple[int, ...]]
    tied_to: tuple[str, ...]
    vectors: tuple[Vector, ...]
    main_path: bool


class Axis(NamedTuple):
    """Axis `axis` of the array `name`; `neurons [size]`: each index's neuron in the group, -1 if in another group."""

    name: str
    axis: int
    neurons: tuple[int, ...]


class Group(NamedTuple):
    """`size` neurons that move together, and all array axes on which they appear."""

    size: int
    axes: tuple[Axis, ...]


class NeuronGraph(NamedTuple):
    """`layers` in execution order, and the permutable `groups` of neurons."""

    layers: tuple[Layer, ...]
    groups: tuple[Group, ...]

    def layer(self, name: str) -> Layer:
        """The layer of that name; raises KeyError if there is none."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"no layer named {name!r} in the neuron graph")

    @property
    def main_convolutions(self) -> tuple[Layer, ...]:
        """The convolutions of the main path: what OTBR scores, prunes and fuses.

        Depthwise convolutions have no neurons of their own (each belongs to its channel's neuron) and stay as they are.
        """
        return tuple(layer for layer in self.layers if layer.kind == "conv" and layer.main_path)


def permute(variables: Variables, group: Group, order: Sequence[int]) -> Variables:
    """Reorders the neurons of one group everywhere: neuron `i` becomes what neuron `order[i]` was.

    The network's function does not change; that is what makes `trace` testable.

    Args:
      variables: the network's variables.
      group: a group of the network's graph.
      order: a permutation of `range(group.size)`.
    """
    leaves: dict[str, Any] = {}
    current = named_leaves(variables)
    for name, axis, neurons in group.axes:
        places: dict[int, list[int]] = {}
        source = list(range(len(neurons)))
        for index, neuron in enumerate(neurons):
            places.setdefault(neuron, []).append(index)
        # A neuron can own several indices of an axis (after flattening): the k-th takes the place of the k-th.
        for neuron in range(group.size):
            for to, of in zip(places[neuron], places[order[neuron]], strict=True):
                source[to] = of
        leaves[name] = jnp.take(leaves.get(name, current[name]), np.array(source), axis=axis)
    return replace_leaves(variables, leaves)


def trace(apply: ApplyFn, variables: Variables, images: Any) -> NeuronGraph:
    """Finds the neurons of a network by tracing its function once (nothing is computed).

    Args:
      apply: evaluation-mode function of the network.
      variables: its variables (arrays or `jax.ShapeDtypeStruct`).
      images: example input `[n, h, w, c]` (array or `jax.ShapeDtypeStruct`).

    Returns:
      The neuron graph.

    Raises:
      InputError: names the operation, its equation and its source line, if the tracer cannot follow it.
    """
    jaxpr = jax.make_jaxpr(apply)(variables, images)
    tracer = _Tracer()
    inputs = [tracer.parameter(name, np.shape(leaf)) for name, leaf in named_leaves(variables).items()]
    inputs.append(_Value(axes=(None,) * len(np.shape(images)), data=True))
    outputs = tracer.run(jaxpr.jaxpr, [_Value.constant(np.ndim(c)) for c in jaxpr.consts], inputs)
    return tracer.graph(outputs)


Slots = np.ndarray | None  # int [size]: the slot of every index of an axis; None for an axis without slots


@dataclasses.dataclass(frozen=True)
class _Value:
    """What is known of one array in the jaxpr.

    `axes`: slots per axis. `kernel`: (array name, its axis per axis) while it is just that array, transposed.
    `data`: whether it depends on the images. `layers`: indices of the layers it went through; `depth`: how many
    of them lie on the longest way.
    """

    axes: tuple[Slots, ...]
    kernel: tuple[str, tuple[int, ...]] | None = None
    data: bool = False
    layers: frozenset[int] = frozenset()
    depth: int = 0

    @staticmethod
    def constant(ndim: int) -> _Value:
        return _Value(axes=(None,) * ndim)


class _Tracer:
    """Walks a jaxpr and unites slots; `graph` reads the result off."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.arrays: dict[str, tuple[np.ndarray, ...]] = {}
        self.kernels: list[tuple[str, str, int, int]] = []
        self.side: set[int] = set()
        self.where = "unknown source line"

    def parameter(self, name: str, shape: tuple[int, ...]) -> _Value:
        axes = []
        for size in shape:
            start = len(self.parent)
            self.parent.extend(range(start, start + size))
            axes.append(np.arange(start, start + size))
        self.arrays[name] = tuple(axes)
        return _Value(axes=tuple(axes), kernel=(name, tuple(range(len(shape)))))

    def find(self, slot: int) -> int:
        while self.parent[slot] != slot:
            self.parent[slot] = self.parent[self.parent[slot]]
            slot = self.parent[slot]
        return slot

    def unite(self, a: Slots, b: Slots) -> Slots:
        """Unites two axes' slots index by index; the first that has slots stands for both."""
        if a is None or b is None:
            return b if a is None else a
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            x, y = self.find(x), self.find(y)
            self.parent[max(x, y)] = min(x, y)
        return a

    # --- walking ---------------------------------------------------------------------------------------------

    def run(self, jaxpr: Any, consts: Sequence[_Value], args: Sequence[_Value]) -> list[_Value]:
        values: dict[Any, _Value] = dict(zip(jaxpr.constvars, consts, strict=True))
        values.update(zip(jaxpr.invars, args, strict=True))

        def read(atom: Any) -> _Value:
            return _Value.constant(np.ndim(atom.val)) if hasattr(atom, "val") else values[atom]

        outside = self.where
        for eqn in jaxpr.eqns:
            self.where = _source_line(eqn) or outside
            operands = [read(atom) for atom in eqn.invars]
            inner = next((eqn.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in eqn.params), None)
            if inner is not None and eqn.primitive.name in _CALLS:
                closed = hasattr(inner, "jaxpr")
                consts = [_Value.constant(np.ndim(c)) for c in inner.consts] if closed else []
                results = self.run(inner.jaxpr if closed else inner, consts, operands)
            elif not any(operand.data or _has_slots(operand) for operand in operands):
                results = [_Value.constant(len(out.aval.shape)) for out in eqn.outvars]
            elif eqn.primitive.name in _RULES:
                found = _RULES[eqn.primitive.name](self, eqn, *operands)
                results = found if isinstance(found, list) else [found]
            elif eqn.primitive.name in _ELEMENTWISE:
                results = [self.elementwise(eqn, operands)]
            else:
                raise self.cannot(f"neurons through the operation {eqn.primitive.name!r}", eqn)
            values.update(zip(eqn.outvars, results, strict=True))
        self.where = outside
        return [read(atom) for atom in jaxpr.outvars]

    def cannot(self, what: str, eqn: Any) -> InputError:
        """The error for an equation that cannot be followed, with its source line."""
        equation = " ".join(str(eqn).split())
        shown = equation if len(equation) <= 200 else f"{equation[:200]}..."
        return InputError(f"network: cannot follow {what}, in `{shown}` ({self.where}); state the neuron graph by hand")

    def merge(self, operands: Sequence[_Value], axes: Sequence[Slots]) -> _Value:
        """The result of an operation on `operands` with output slots `axes`; no longer a plain kernel."""
        return _Value(
            axes=tuple(axes),
            data=any(o.data for o in operands),
            layers=frozenset().union(*(o.layers for o in operands)),
            depth=max((o.depth for o in operands), default=0),
        )

    def elementwise(self, eqn: Any, operands: Sequence[_Value]) -> _Value:
        shape = eqn.outvars[0].aval.shape
        axes: list[Slots] = [None] * len(shape)
        full = [o for o, atom in zip(operands, eqn.invars, strict=True) if len(atom.aval.shape) == len(shape)]
        for operand in full:
            for axis, slots in enumerate(operand.axes):
                # A size-1 axis is broadcast: its single slot says nothing about the other side's neurons.
                if slots is not None and len(slots) == shape[axis]:
                    axes[axis] = self.unite(axes[axis], slots)
        branches = [o for o in operands if o.data]
        if eqn.primitive.name in ("add", "add_any", "sub", "mul") and len(branches) == 2:
            self.mark_side_path(*branches, gate=eqn.primitive.name == "mul")
        result = self.merge(operands, axes)
        plain = [o for o in operands if _has_slots(o) or o.data]
        if eqn.primitive.name in ("convert_element_type", "copy") and len(plain) == 1:
            result = dataclasses.replace(result, kernel=plain[0].kernel)
        return result

    def mark_side_path(self, a: _Value, b: _Value, *, gate: bool) -> None:
        """Of two branches that are added, the one through fewer layers is a shortcut; multiplied, the other a gate."""
        if a.depth == b.depth:
            return
        longer, shorter = (a, b) if a.depth > b.depth else (b, a)
        self.side |= (longer.layers - shorter.layers) if gate else (shorter.layers - longer.layers)

    def add_layer(self, kind: str, kernel: _Value, operand: _Value, neuron_axis: int, input_axis: int) -> _Value:
        """Registers a kernel; `*_axis` are axes of the kernel as it is used. Returns a value of the new depth."""
        assert kernel.kernel is not None
        name, own_axes = kernel.kernel
        layer = (name, kind, own_axes[neuron_axis], own_axes[input_axis])
        if layer not in self.kernels:  # a shared kernel is one layer, however often it is used
            self.kernels.append(layer)
        layers = operand.layers | {self.kernels.index(layer)}
        return _Value(axes=(), data=True, layers=layers, depth=operand.depth + 1)

    # --- the result ------------------------------------------------------------------------------------------

    def graph(self, results: Sequence[_Value]) -> NeuronGraph:
        roots = {
            (name, axis): tuple(self.find(slot) for slot in slots.tolist())
            for name, axes in self.arrays.items()
            for axis, slots in enumerate(axes)
        }
        outputs = [set(roots[name, neuron_axis]) for name, _, neuron_axis, _ in self.kernels]
        classes = {self.find(slot) for value in results for axis in value.axes if axis is not None for slot in axis}
        kernel_names = {name for name, *_ in self.kernels}
        layers = []
        for index, (name, kind, neuron_axis, input_axis) in enumerate(self.kernels):
            own, fed = roots[name, neuron_axis], roots[name, input_axis]
            layers.append(
                Layer(
                    name=name,
                    kind=kind,
                    neuron_axis=neuron_axis,
                    input_axis=input_axis,
                    neurons=len(own),
                    inputs=len(fed),
                    fed_by={
                        feeder: _positions(fed, roots[feeder, axis])
                        for (feeder, _, axis, _), out in zip(self.kernels[:index], outputs, strict=False)
                        if out & set(fed)
                    },
                    tied_to=tuple(
                        k[0] for i, k in enumerate(self.kernels) if i != index and outputs[i] & outputs[index]
                    ),
                    vectors=tuple(
                        Vector(array, axis)
                        for (array, axis), slots in roots.items()
                        if array not in kernel_names and set(slots) & outputs[index]
                    ),
                    main_path=index not in self.side and not outputs[index] & classes,
                )
            )
        return NeuronGraph(tuple(layers), self._groups(roots, classes))

    def _groups(self, roots: Mapping[tuple[str, int], tuple[int, ...]], classes: set[int]) -> tuple[Group, ...]:
        """Neurons that appear equally often on the same axes may change places: they form a group.

        `classes` are the network's own outputs, whose order has a meaning; they are in no group.
        """
        appearances: dict[int, dict[tuple[str, int], int]] = {}
        for where, slots in roots.items():
            for slot in slots:
                counts = appearances.setdefault(slot, {})
                counts[where] = counts.get(where, 0) + 1
        neuron_axes = {(name, axis) for name, _, axis, _ in self.kernels}
        members: dict[tuple[Any, ...], list[int]] = {}
        for slot, counts in appearances.items():
            if slot not in classes and neuron_axes & counts.keys():
                members.setdefault(tuple(counts.items()), []).append(slot)
        groups = []
        for pattern, neurons in members.items():
            position = {slot: i for i, slot in enumerate(sorted(neurons))}
            axes = [
                Axis(name, axis, tuple(position.get(slot, -1) for slot in roots[name, axis]))
                for (name, axis), _ in pattern
            ]
            groups.append(Group(len(neurons), tuple(axes)))
        return tuple(groups)


def _positions(inputs: Sequence[int], neurons: Sequence[int]) -> tuple[int, ...]:
    place = {neuron: i for i, neuron in enumerate(neurons)}
    return tuple(place.get(slot, -1) for slot in inputs)


def _has_slots(value: _Value) -> bool:
    return any(slots is not None for slots in value.axes)


def _source_line(eqn: Any) -> str | None:
    """The innermost source line of an equation that is not inside JAX or Flax, if it is known."""
    traceback = eqn.source_info.traceback
    for frame in traceback.frames if traceback is not None else []:
        if not any(f"/{package}/" in frame.file_name for package in ("jax", "flax")):
            return f"{frame.file_name}:{frame.line_num}"
    return None


# --- rules, one for each operation that moves axes --------------------------------------------------------------


def _convolution(tracer: _Tracer, eqn: Any, images: _Value, kernel: _Value) -> _Value:
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    if kernel.kernel is None or not images.data:
        raise tracer.cannot("a convolution whose kernel is computed", eqn)
    out_axis, in_axis = numbers.rhs_spec[0], numbers.rhs_spec[1]
    channels, neurons = images.axes[numbers.lhs_spec[1]], kernel.axes[out_axis]
    kind = "conv"
    if groups == 1:
        tracer.unite(channels, kernel.axes[in_axis])
    elif channels is not None and neurons is not None and len(channels) == len(neurons) == groups:
        tracer.unite(channels, neurons)
        kind = "depthwise"
    else:
        raise tracer.cannot(f"a convolution in {groups} groups", eqn)
    layer = tracer.add_layer(kind, kernel, images, out_axis, in_axis)
    axes: list[Slots] = [None] * len(numbers.out_spec)
    axes[numbers.out_spec[1]] = neurons
    return dataclasses.replace(layer, axes=tuple(axes))


def _dot_general(tracer: _Tracer, eqn: Any, lhs: _Value, rhs: _Value) -> _Value:
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = eqn.params["dimension_numbers"]
    for a, b in zip((*lhs_contract, *lhs_batch), (*rhs_contract, *rhs_batch), strict=True):
        tracer.unite(lhs.axes[a], rhs.axes[b])
    lhs_free = [i for i in range(len(lhs.axes)) if i not in lhs_contract and i not in lhs_batch]
    rhs_free = [i for i in range(len(rhs.axes)) if i not in rhs_contract and i not in rhs_batch]
    axes = [lhs.axes[i] for i in (*lhs_batch, *lhs_free)] + [rhs.axes[i] for i in rhs_free]
    result = tracer.merge((lhs, rhs), axes)
    images, kernel, free, contract = (lhs, rhs, rhs_free, rhs_contract)
    if rhs.data and not lhs.data:
        images, kernel, free, contract = (rhs, lhs, lhs_free, lhs_contract)
    if images.data and not kernel.data and _has_slots(kernel):
        if kernel.kernel is None or len(free) != 1 or len(contract) != 1:
            raise tracer.cannot("a dense layer whose kernel is computed or reshaped", eqn)
        layer = tracer.add_layer("dense", kernel, images, free[0], contract[0])
        result = dataclasses.replace(layer, axes=tuple(axes))
    return result


def _transpose(tracer: _Tracer, eqn: Any, x: _Value) -> _Value:
    order = eqn.params["permutation"]
    kernel = (x.kernel[0], tuple(x.kernel[1][i] for i in order)) if x.kernel else None
    return dataclasses.replace(x, axes=tuple(x.axes[i] for i in order), kernel=kernel)


def _broadcast(tracer: _Tracer, eqn: Any, x: _Value, *_: _Value) -> _Value:
    axes: list[Slots] = [None] * len(eqn.params["shape"])
    for axis, out_axis in enumerate(eqn.params["broadcast_dimensions"]):
        slots = x.axes[axis]
        if slots is not None and len(slots) == eqn.params["shape"][out_axis]:
            axes[out_axis] = slots
    return tracer.merge((x,), axes)


def _reshape(tracer: _Tracer, eqn: Any, x: _Value) -> _Value:
    """Axes may be kept, inserted and dropped (size 1), or merged; an axis with neurons is never split."""
    before, after = list(eqn.invars[0].aval.shape), list(eqn.outvars[0].aval.shape)
    axes: list[Slots] = []
    i = 0
    for size in after:
        if i < len(before) and before[i] == size:
            axes.append(x.axes[i])
            i += 1
            continue
        start, total = i, 1
        while i < len(before) and total < size:
            total *= before[i]
            i += 1
        if total != size:
            return _split_axes(tracer, eqn, x)
        axes.append(_merged(tracer, eqn, [x.axes[k] for k in range(start, i)], before[start:i]))
    return tracer.merge((x,), axes)


def _split_axes(tracer: _Tracer, eqn: Any, x: _Value) -> _Value:
    """A reshape that splits axes: those behind the last changed one keep their slots, the others must have none."""
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    same = 0
    while same < min(len(before), len(after)) and before[-1 - same] == after[-1 - same]:
        same += 1
    changed = len(before) - same
    if any(slots is not None and size > 1 for slots, size in zip(x.axes[:changed], before[:changed], strict=True)):
        raise tracer.cannot("neurons through a split axis", eqn)
    return tracer.merge((x,), [None] * (len(after) - same) + list(x.axes[changed:]))


def _merged(tracer: _Tracer, eqn: Any, axes: Sequence[Slots], sizes: Sequence[int]) -> Slots:
    """Slots of several axes flattened into one, row-major; at most one of them may carry neurons."""
    carrying = [i for i, slots in enumerate(axes) if slots is not None and sizes[i] > 1]
    if not carrying:
        return None
    if len(carrying) > 1:
        raise tracer.cannot("two axes of neurons merged into one", eqn)
    (i,) = carrying
    shape = [1] * len(sizes)
    shape[i] = sizes[i]
    return np.broadcast_to(np.asarray(axes[i]).reshape(shape), sizes).reshape(-1)


def _squeeze(tracer: _Tracer, eqn: Any, x: _Value) -> _Value:
    dropped = [axis % len(x.axes) for axis in eqn.params["dimensions"]]
    return tracer.merge((x,), [slots for axis, slots in enumerate(x.axes) if axis not in dropped])


def _expand_dims(tracer: _Tracer, eqn: Any, x: _Value) -> _Value:
    axes = list(x.axes)
    for axis in sorted(eqn.params["dimensions"]):
        axes.insert(axis, None)
    return tracer.merge((x,), axes)


def _reduce(tracer: _Tracer, eqn: Any, x: _Value, *_: _Value) -> _Value:
    return tracer.merge((x,), [slots for axis, slots in enumerate(x.axes) if axis not in eqn.params["axes"]])


def _window(tracer: _Tracer, eqn: Any, x: _Value, *_: _Value) -> _Value:
    """Pooling over axes without neurons."""
    sizes = eqn.params["window_dimensions"]
    if any(slots is not None and size > 1 for slots, size in zip(x.axes, sizes, strict=True)):
        raise tracer.cannot("pooling across neurons", eqn)
    return tracer.merge((x,), x.axes)


def _pad(tracer: _Tracer, eqn: Any, x: _Value, *_: _Value) -> _Value:
    same = [config == (0, 0, 0) for config in eqn.params["padding_config"]]
    if any(slots is not None and not keep for slots, keep in zip(x.axes, same, strict=True)):
        raise tracer.cannot("neurons through padded channels", eqn)
    return tracer.merge((x,), x.axes)


def _slice(tracer: _Tracer, eqn: Any, x: _Value) -> _Value:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    steps = eqn.params["strides"] or (1,) * len(starts)
    axes = [
        slots if slots is None else slots[a:b:s] for slots, a, b, s in zip(x.axes, starts, limits, steps, strict=True)
    ]
    return tracer.merge((x,), axes)


def _split(tracer: _Tracer, eqn: Any, x: _Value) -> list[_Value]:
    """One output per part of the split axis; its slots are divided among them."""
    bounds = np.cumsum((0, *eqn.params["sizes"]))
    results = []
    for start, stop in itertools.pairwise(bounds):
        axes = list(x.axes)
        slots = axes[eqn.params["axis"]]
        axes[eqn.params["axis"]] = None if slots is None else slots[start:stop]
        results.append(tracer.merge((x,), axes))
    return results


def _concatenate(tracer: _Tracer, eqn: Any, *operands: _Value) -> _Value:
    joined = eqn.params["dimension"]
    axes: list[Slots] = []
    for axis in range(len(operands[0].axes)):
        parts = [operand.axes[axis] for operand in operands]
        if axis != joined:
            slots: Slots = None
            for part in parts:
                slots = tracer.unite(slots, part)
            axes.append(slots)
        elif all(part is None for part in parts):
            axes.append(None)
        elif any(part is None for part in parts):
            raise tracer.cannot("neurons joined with an input", eqn)
        else:
            axes.append(np.concatenate([part for part in parts if part is not None]))
    return tracer.merge(operands, axes)


_CALLS = frozenset("jit pjit closed_call core_call custom_jvp_call custom_vjp_call remat remat2 checkpoint".split())

_RULES: Mapping[str, Callable[..., _Value | list[_Value]]] = {
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
    "argmax": _reduce,
    "reduce_window_sum": _window,
    "reduce_window_max": _window,
    "reduce_window": _window,
    "pad": _pad,
    "slice": _slice,
    "split": _split,
    "concatenate": _concatenate,
}

_ELEMENTWISE = frozenset(
    "abs add add_any cbrt ceil clamp convert_element_type copy cos div eq erf erf_inv erfc exp exp2 expm1 floor ge gt "
    "integer_pow is_finite le log log1p logistic lt max min mul ne neg nextafter not and or pow rem round rsqrt "
    "select_n sign sin sinh cosh sqrt square stop_gradient sub tan tanh sharding_constraint".split()
)
