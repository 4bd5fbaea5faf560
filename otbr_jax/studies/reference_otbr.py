"""Every stage of OTBR against reference numbers (see `references`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.errors import InputError
from otbr_jax.graph.graph import Layer
from otbr_jax.graph.trace import trace
from otbr_jax.interop.state_dict import tensor_name
from otbr_jax.steps import fuse as fusion
from otbr_jax.steps import transport
from otbr_jax.steps.fuse import Alignment, FusionConfig, FusionInfo
from otbr_jax.steps.prune import neurons_to_prune, prune
from otbr_jax.steps.score import Scores, by_neuron, neuron_weight_changes
from otbr_jax.steps.transport import Plan, TransportConfig
from otbr_jax.steps.unlearn import UnlearningConfig, unlearn
from otbr_jax.studies.comparison import (
    Comparison,
    compare,
    compare_choice,
    compare_errors,
    compare_neurons,
    largest,
    nearly_equal_starts,
    norm,
    worst_of,
)
from otbr_jax.studies.references import Reference
from otbr_jax.types import Variables, named_leaves

_LOGITS = 1e-4
_UNLEARNED = 1e-4
_CHANGES = 1e-3  # a rounded activation that passes zero or not made 3e-4 of it
_NWC = 1e-3
_FUSED = 1e-3
# Of the largest change of any tensor. One that moves less, such as a bias in front of a normalisation, whose gradient
# is zero but for rounding, is compared as if it moved so far: `_CHANGES` of it is float32's rounding of that change.
_ZERO = 1e-4
_TIED = (
    "pruned neurons are identical rows: any way to share mass among them is optimal, and the next layer's inputs "
    "depend on the solver's; compared with the sharing that the reference's weights show"
)
_SINKHORN = TransportConfig(epsilon=3e-3, max_iterations=20_000)
_ENTROPIC = f"tolerance: what epsilon = {_SINKHORN.epsilon:g} makes of it, which is far above rounding"


class _Run(NamedTuple):
    """The results from one start."""

    victim: Variables
    unlearned: Variables
    scores: Scores


def check_otbr(reference: Reference) -> Iterator[Comparison]:
    """Yields the comparisons of all stages, each computed from what this project computed before it.

    Unlearning on the stored noise, NWC, pruning, fusion by exact plans, and where it is defined by entropic ones.

    Raises:
      InputError: names what the file lacks.
    """
    network, victim = reference.network, reference.variables("victim")
    starts = nearly_equal_starts(victim)
    yield compare(
        "victim_logits", [reference.logits(start) for start in starts], reference.array("victim_logits"), least=_LOGITS
    )

    noise = reference.batches("otbr/noise", "otbr/labels")
    steps, batch_size = noise.labels.shape
    rate, momentum = reference.setting("otbr", "lr"), reference.setting("otbr", "momentum")
    config = UnlearningConfig(steps, batch_size, rate, momentum)
    ascend = jax.jit(lambda variables: unlearn(network, variables, noise, config=config)[0])
    unlearned = [ascend(start) for start in starts]
    yield from _compare_unlearned(reference, starts, unlearned)

    layers = trace(network.apply, victim, noise.images[0]).main_convolutions
    stored = [reference.names[tensor_name(layer.name)] for layer in layers]
    expected = reference.setting("conv_layers")
    if stored != list(expected):
        raise InputError(f"--reference: expected meta's conv_layers to be {stored}, found {expected}")
    runs = [
        _Run(start, after, neuron_weight_changes(start, after, layers))
        for start, after in zip(starts, unlearned, strict=True)
    ]
    for layer, name in zip(layers, stored, strict=True):
        scores = [np.asarray(run.scores[layer.name]) for run in runs]
        yield compare_neurons(f"nwc/{name}", scores, reference.array(f"otbr/nwc/{name}"), least=_NWC)
    aligners = [
        jax.jit(
            lambda pruned, victim, scores, masks, c=config: fusion.align(
                pruned, victim, scores, masks, layers, config=c
            )
        )
        for config in (FusionConfig(transport=TransportConfig(solver="exact")), FusionConfig(transport=_SINKHORN))
    ]
    for gamma in _gammas(reference):
        yield from _compare_repaired(reference, runs, layers, gamma, aligners)


def _gammas(reference: Reference) -> list[str]:
    parts = [name.split("/") for name in reference.arrays if name.startswith("otbr/pruned_")]
    gammas = sorted({part[1].removeprefix("pruned_") for part in parts}, key=float)
    if not gammas:
        raise InputError("--reference: expected arrays 'otbr/pruned_GAMMA/neurons' in the file, found none")
    return gammas


def _compare_unlearned(
    reference: Reference, starts: Sequence[Variables], unlearned: Sequence[Variables]
) -> Iterator[Comparison]:
    before, after = [reference.tensors(start) for start in starts], [reference.tensors(end) for end in unlearned]
    expected = {name: reference.array(f"otbr/unlearned/{name}") for name in after[0]}
    parameters = [tensor_name(leaf) for leaf in named_leaves(starts[0]) if leaf.startswith("params/")]
    trained = {reference.names[name] for name in parameters if name in reference.names}
    zero = _ZERO * max(largest(expected[name] - before[0][name]) for name in trained)
    weights, changes = [], []
    for name, array in expected.items():
        ours = [end[name] for end in after]
        weights.append(compare(name, ours, array, least=_UNLEARNED, scale=max(largest(array), zero), of="the tensor"))
        own_changes = [end[name].astype(np.float64) - start[name] for start, end in zip(before, after, strict=True)]
        change = array.astype(np.float64) - before[0][name]
        size, least = norm(change), zero * change.size**0.5
        of = (
            "its change" if size > least else f"{_ZERO:g} of the largest change, since its own is no more than rounding"
        )
        changes.append(
            compare(
                name, own_changes, change, least=_CHANGES, scale=max(size, least), of=f"{of}, in L2 norm", measure=norm
            )
        )
    yield worst_of("unlearned", weights)
    yield worst_of("unlearned_change", changes)
    logits = [reference.logits(end) for end in unlearned]
    yield compare("unlearned_logits", logits, reference.array("otbr/unlearned_logits"), least=_LOGITS)


def _compare_repaired(
    reference: Reference,
    runs: Sequence[_Run],
    layers: Sequence[Layer],
    gamma: str,
    aligners: Sequence[Callable[..., Alignment]],
) -> Iterator[Comparison]:
    count = neurons_to_prune(float(gamma), sum(layer.neurons for layer in layers))
    expected = _pruned_neurons(reference, layers, gamma)
    wanted = sum(int(mask.sum()) for mask in expected.values())
    counted = compare_errors(
        f"pruned_{gamma}/count", abs(count - wanted), abs(count - wanted) / max(count, 1), tolerance=0.0
    )
    own = prune(runs[0].victim, runs[0].scores, layers, count=count)[1].pruned
    chosen = compare_choice(
        f"pruned_{gamma}/neurons",
        _flat(own, layers),
        _flat(expected, layers),
        [_flat(run.scores, layers) for run in runs],
        least=_NWC,
        things="neurons",
    )
    yield from (counted, chosen)
    if not (counted.passed and chosen.passed):  # other neurons, another network
        return
    # The reference's neurons, where rounding alone decides.
    masks = {name: jnp.asarray(mask) for name, mask in expected.items()}
    flags = {name: mask.astype(jnp.float32) for name, mask in masks.items()}
    pruned = [prune(run.victim, flags, layers, count=count)[0] for run in runs]
    logits = [reference.logits(variables) for variables in pruned]
    yield compare(f"pruned_{gamma}/logits", logits, reference.array(f"otbr/pruned_{gamma}/logits"), least=_LOGITS)
    align, align_entropic = aligners
    exact = [align(variables, run.victim, run.scores, masks) for variables, run in zip(pruned, runs, strict=True)]
    yield from _compare_fused(reference, runs, pruned, exact, layers, gamma)
    entropic = align_entropic(pruned[0], runs[0].victim, runs[0].scores, masks)
    yield from _compare_entropic(reference, runs[0].victim, exact[0].info, entropic, layers, gamma)


def _flat(values: Mapping[str, jax.Array | np.ndarray], layers: Sequence[Layer]) -> np.ndarray:
    return np.concatenate([np.asarray(values[layer.name]) for layer in layers])


def _pruned_neurons(reference: Reference, layers: Sequence[Layer], gamma: str) -> dict[str, np.ndarray]:
    """Which neurons the reference pruned: `{layer name: bool [neurons]}`; raises InputError for one we do not have."""
    places = {_stored_name(reference, layer): layer for layer in layers}
    masks = {layer.name: np.zeros(layer.neurons, bool) for layer in layers}
    for neuron in reference.array(f"otbr/pruned_{gamma}/neurons").tolist():
        name, _, index = neuron.rpartition(":")
        if name not in places or not index.isdigit() or int(index) >= places[name].neurons:
            raise InputError(f"--reference: expected LAYER:INDEX in otbr/pruned_{gamma}/neurons, found {neuron!r}")
        masks[places[name].name][int(index)] = True
    return masks


class _Fused(NamedTuple):
    """Fused variables, with ties shared as in the reference, and how far that sharing is from an optimal plan.

    Attributes:
      variables: of the fused network.
      ties: `{layer name: {what: residual, zero for an optimal plan}}`.
    """

    variables: Variables
    ties: dict[str, dict[str, np.ndarray]]


def _compare_fused(
    reference: Reference,
    runs: Sequence[_Run],
    pruned: Sequence[Variables],
    alignments: Sequence[Alignment],
    layers: Sequence[Layer],
    gamma: str,
) -> Iterator[Comparison]:
    """Fused weights and logits by exact plans, ties shared as in the reference."""
    expected = {layer.name: _fused_kernel(reference, layer, gamma) for layer in layers}
    lam = reference.setting("otbr", "lambda")
    ours = [_fuse(*each, layers, expected, lam=lam) for each in zip(runs, pruned, alignments, strict=True)]
    for layer in layers:
        for what in ours[0].ties.get(layer.name, {}):
            residuals = [one.ties[layer.name][what] for one in ours]
            name = f"fused_{gamma}/ties_before/{_stored_name(reference, layer)}/{what}"
            nothing = np.zeros_like(residuals[0])
            yield compare(name, residuals, nothing, least=_FUSED, scale=1.0, of="all of a neuron's mass")
    kernels = [named_leaves(one.variables) for one in ours]
    original = named_leaves(runs[0].victim)
    takes_part = {layer.name: bool(alignments[0].info.fused[layer.name]) for layer in layers}
    for layer in layers:
        if takes_part[layer.name]:
            yield compare(
                f"fused_{gamma}/{_stored_name(reference, layer)}",
                [np.asarray(leaves[layer.name]) for leaves in kernels],
                expected[layer.name],
                least=_FUSED,
                note=_TIED if layer.name in ours[0].ties else "",
            )
    still = [layer.name for layer in layers if not takes_part[layer.name]]
    if still:
        change = max(largest(expected[name] - np.asarray(original[name])) for name in still)
        yield compare_errors(
            f"fused_{gamma}/untouched", change, change, tolerance=0.0, note="layers before the first pruned neuron"
        )
    yield compare(
        f"fused_{gamma}/logits",
        [reference.logits(one.variables) for one in ours],
        reference.array(f"otbr/fused_{gamma}/logits"),
        least=_FUSED,
        note=_TIED if ours[0].ties else "",
    )


def _fuse(
    run: _Run,
    pruned: Variables,
    alignment: Alignment,
    layers: Sequence[Layer],
    expected: Mapping[str, np.ndarray],
    *,
    lam: float,
) -> _Fused:
    maps, ties = dict[str, np.ndarray](), dict[str, dict[str, np.ndarray]]()
    for layer in layers:
        own = transport.barycentric_map(alignment.info.plans[layer.name].matrix)
        maps[layer.name] = np.array(own if alignment.info.fused[layer.name] else np.eye(layer.neurons), np.float64)
    original, source = named_leaves(run.victim), named_leaves(pruned)
    for layer in layers:
        feeding = [
            name for name in layer.fed_by if name in maps and layers.index(_layer(layers, name)) < layers.index(layer)
        ]
        if not feeding or not alignment.info.fused[layer.name]:
            continue
        before = _layer(layers, feeding[-1])  # where several are added, the last one counts
        rows = np.asarray(by_neuron(source[before.name], before))
        tied = np.linalg.norm(rows, axis=1) <= 1e-6 * np.max(np.linalg.norm(rows, axis=1))
        if tied.sum() < 2 or not alignment.info.fused[before.name]:
            continue
        aligned = (expected[layer.name] - (1 - lam) * np.asarray(original[layer.name], np.float64)) / lam
        shared = _shares(np.asarray(source[layer.name], np.float64), aligned, maps[layer.name], maps[before.name], tied)
        mass = np.asarray(transport.proportional_mass(run.scores[before.name]), np.float64)
        ties[layer.name] = _residuals(shared, maps[before.name], tied, mass)
        maps[before.name][tied] = shared
    mapped = fusion.map_neurons(pruned, layers, {name: jnp.asarray(m, jnp.float32) for name, m in maps.items()})
    return _Fused(fusion.interpolate(run.victim, alignment._replace(kernels=mapped), lam=lam), ties)


def _shares(
    kernel: np.ndarray, aligned: np.ndarray, own: np.ndarray, before: np.ndarray, tied: np.ndarray
) -> np.ndarray:
    """How much of each tied input neuron is in each input of an aligned kernel: least squares, `[tied, inputs]`.

    Args:
      kernel: of the pruned network, `[h, w, inputs, neurons]`.
      aligned: the same kernel, inputs and neurons mapped.
      own: the map of its neurons.
      before: the map of its inputs; its rows of tied neurons are not used.
      tied: bool `[inputs]`.
    """
    by_input = np.einsum("hwio,op->ihwp", kernel, own).reshape(len(before), -1)
    rest = aligned.transpose(2, 0, 1, 3).reshape(len(before), -1) - before[~tied].T @ by_input[~tied]
    return np.linalg.lstsq(by_input[tied].T, rest.T, rcond=None)[0]


def _residuals(shared: np.ndarray, before: np.ndarray, tied: np.ndarray, mass: np.ndarray) -> dict[str, np.ndarray]:
    """How far the shares are from an optimal plan: no negative ones, equal mass from each source and to each target.

    In units of a neuron's mass, the source's or the target's.
    """
    return {
        "negative": np.minimum(shared, 0.0),
        "to_each_target": shared.sum(0) - before[tied].sum(0),
        "from_each_source": len(tied) * (shared @ mass) - 1.0,
    }


def _compare_entropic(
    reference: Reference,
    victim: Variables,
    exact: FusionInfo,
    entropic: Alignment,
    layers: Sequence[Layer],
    gamma: str,
) -> Iterator[Comparison]:
    """Sinkhorn's plans against exact ones: cost, marginals, and the first fused layer, whose inputs have no ties."""
    fused = [layer for layer in layers if bool(exact.fused[layer.name])]
    if not fused:
        return
    plans: Mapping[str, Plan] = entropic.info.plans
    gaps = {layer.name: float(plans[layer.name].cost / exact.plans[layer.name].cost - 1) for layer in fused}
    worst = max(gaps, key=lambda name: abs(gaps[name]))
    note = f"worst of {len(fused)} layers: {tensor_name(worst)}; entropic against exact; {_ENTROPIC}"
    absolute = abs(float(plans[worst].cost - exact.plans[worst].cost))
    yield compare_errors(f"sinkhorn_{gamma}/plan_cost", absolute, abs(gaps[worst]), tolerance=1e-2, note=note)
    error = max(float(plans[layer.name].marginal_error) for layer in fused)
    yield compare_errors(
        f"sinkhorn_{gamma}/marginals", error, error, tolerance=5e-3, note=f"L1, worst layer; {_ENTROPIC}"
    )
    first = fused[0]
    kernel = named_leaves(fusion.interpolate(victim, entropic, lam=reference.setting("otbr", "lambda")))[first.name]
    expected = _fused_kernel(reference, first, gamma)
    difference = np.asarray(kernel) - expected
    yield compare_errors(
        f"sinkhorn_{gamma}/{_stored_name(reference, first)}",
        float(np.max(np.abs(difference))),
        float(np.linalg.norm(difference) / np.linalg.norm(expected)),
        tolerance=0.1,
        note=f"Euclidean norm; in later layers entropic plans share ties evenly, exact ones do not; {_ENTROPIC}",
    )


def _layer(layers: Sequence[Layer], name: str) -> Layer:
    return next(layer for layer in layers if layer.name == name)


def _stored_name(reference: Reference, layer: Layer) -> str:
    return reference.names[tensor_name(layer.name)]


def _fused_kernel(reference: Reference, layer: Layer, gamma: str) -> np.ndarray:
    """The reference's fused kernel as `[h, w, inputs, neurons]`."""
    return (
        reference.array(f"otbr/fused_{gamma}/{_stored_name(reference, layer)}").transpose(2, 3, 1, 0).astype(np.float64)
    )
