"""Every stage of OTBR against reference numbers (see `references`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax import fusion, transport
from otbr_jax.errors import InputError
from otbr_jax.experiments.comparing import Comparison, compare, compare_each, judge
from otbr_jax.experiments.references import Reference
from otbr_jax.fusion import Alignment, FusionConfig, FusionInfo
from otbr_jax.interop.state_dict import tensor_name
from otbr_jax.neuron_graph import Layer
from otbr_jax.neurons import trace
from otbr_jax.pruning import neurons_to_prune, prune
from otbr_jax.transport import Plan, TransportConfig
from otbr_jax.types import Variables, named_leaves
from otbr_jax.unlearning import UnlearningConfig, unlearn
from otbr_jax.weight_change import Scores, by_neuron, neuron_weight_changes

_LOGITS = 1e-4
_UNLEARNED = 1e-4
_CHANGES = 1e-2
_NWC = 1e-3
_FUSED = 1e-3
_TIED = (
    "pruned neurons are identical rows: any way to share mass among them is optimal, and the next layer's inputs "
    "depend on the solver's; compared with the sharing that the reference's weights show"
)
_SINKHORN = TransportConfig(epsilon=3e-3, max_iterations=20_000)


def check_otbr(reference: Reference) -> Iterator[Comparison]:
    """Yields the comparisons of all stages, each computed from what this project computed before it.

    Unlearning on the stored noise, NWC, pruning, fusion by exact plans, and where it is defined by entropic ones.

    Raises:
      InputError: names what the file lacks.
    """
    network, victim = reference.network, reference.variables("victim")
    yield compare("victim_logits", reference.logits(victim), reference.array("victim_logits"), tolerance=_LOGITS)

    noise = reference.batches("otbr/noise", "otbr/labels")
    steps, batch_size = noise.labels.shape
    rate, momentum = reference.setting("otbr", "lr"), reference.setting("otbr", "momentum")
    config = UnlearningConfig(steps, batch_size, rate, momentum)
    unlearned, _ = jax.jit(lambda variables: unlearn(network, variables, noise, config=config))(victim)
    yield from _unlearned(reference, victim, unlearned)

    layers = trace(network.apply, victim, noise.images[0]).main_convolutions
    stored = [reference.names[tensor_name(layer.name)] for layer in layers]
    expected = reference.setting("conv_layers")
    if stored != list(expected):
        raise InputError(f"--reference: expected meta's conv_layers to be {stored}, found {expected}")
    scores = neuron_weight_changes(victim, unlearned, layers)
    for layer, name in zip(layers, stored, strict=True):
        yield compare_each(
            f"nwc/{name}", np.asarray(scores[layer.name]), reference.array(f"otbr/nwc/{name}"), tolerance=_NWC
        )
    aligners = [
        jax.jit(lambda pruned, masks, c=config: fusion.align(pruned, victim, scores, masks, layers, config=c))
        for config in (FusionConfig(transport=TransportConfig(solver="exact")), FusionConfig(transport=_SINKHORN))
    ]
    for gamma in _gammas(reference):
        yield from _repaired(reference, victim, scores, layers, gamma, aligners)


def _gammas(reference: Reference) -> list[str]:
    parts = [name.split("/") for name in reference.arrays if name.startswith("otbr/pruned_")]
    gammas = sorted({part[1].removeprefix("pruned_") for part in parts}, key=float)
    if not gammas:
        raise InputError("--reference: expected arrays 'otbr/pruned_GAMMA/neurons' in the file, found none")
    return gammas


def _unlearned(reference: Reference, victim: Variables, unlearned: Variables) -> Iterator[Comparison]:
    before, after = reference.tensors(victim), reference.tensors(unlearned)
    weights, changes = [], []
    for name, found in after.items():
        expected = reference.array(f"otbr/unlearned/{name}")
        weights.append(compare(name, found, expected, tolerance=_UNLEARNED))
        moved = float(np.max(np.abs(expected - before[name])))
        changes.append(compare(name, found, expected, tolerance=_CHANGES, scale=moved))
    for title, found_of, of in (("unlearned", weights, "tensor"), ("unlearned_change", changes, "tensor's change")):
        worst = max(found_of, key=lambda comparison: comparison.max_rel)
        yield worst._replace(name=title, note=f"worst of {len(found_of)} tensors: {worst.name}; relative to the {of}")
    yield compare(
        "unlearned_logits", reference.logits(unlearned), reference.array("otbr/unlearned_logits"), tolerance=_LOGITS
    )


def _repaired(
    reference: Reference,
    victim: Variables,
    scores: Scores,
    layers: Sequence[Layer],
    gamma: str,
    aligners: Sequence[Callable[..., Alignment]],
) -> Iterator[Comparison]:
    count = neurons_to_prune(float(gamma), sum(layer.neurons for layer in layers))
    pruned, info = prune(victim, scores, layers, count=count)
    found = {
        f"{reference.names[tensor_name(layer.name)]}:{neuron}"
        for layer in layers
        for neuron in np.flatnonzero(info.pruned[layer.name])
    }
    wrong = len(found ^ set(reference.array(f"otbr/pruned_{gamma}/neurons").tolist()))
    yield judge(f"pruned_{gamma}/neurons", wrong, wrong / max(count, 1), tolerance=0.0, note="neurons in one set only")
    expected = reference.array(f"otbr/pruned_{gamma}/logits")
    yield compare(f"pruned_{gamma}/logits", reference.logits(pruned), expected, tolerance=_LOGITS)
    if wrong:  # other neurons, another network
        return
    exact, entropic = (align(pruned, info.pruned) for align in aligners)
    yield from _fused(reference, victim, pruned, exact, scores, layers, gamma)
    yield from _entropic(reference, victim, exact.info, entropic, layers, gamma)


def _fused(
    reference: Reference,
    victim: Variables,
    pruned: Variables,
    alignment: Alignment,
    scores: Scores,
    layers: Sequence[Layer],
    gamma: str,
) -> Iterator[Comparison]:
    """Fused weights and logits by exact plans, ties shared as in the reference."""
    lam = reference.setting("otbr", "lambda")
    expected = {layer.name: _fused_kernel(reference, layer, gamma) for layer in layers}
    maps, notes = {}, dict.fromkeys((layer.name for layer in layers), "")
    for layer in layers:
        own = transport.barycentric_map(alignment.info.plans[layer.name].matrix)
        maps[layer.name] = np.asarray(own if alignment.info.fused[layer.name] else np.eye(layer.neurons), np.float64)
    original, source = named_leaves(victim), named_leaves(pruned)
    for layer in layers:
        feeding = [
            name for name in layer.fed_by if name in maps and layers.index(_named(layers, name)) < layers.index(layer)
        ]
        if not feeding or not alignment.info.fused[layer.name]:
            continue
        before = _named(layers, feeding[-1])  # where several are added, the last one counts
        rows = np.asarray(by_neuron(source[before.name], before))
        tied = np.linalg.norm(rows, axis=1) <= 1e-6 * np.max(np.linalg.norm(rows, axis=1))
        if tied.sum() < 2 or not alignment.info.fused[before.name]:
            continue
        aligned = (expected[layer.name] - (1 - lam) * np.asarray(original[layer.name], np.float64)) / lam
        shared = _shares(np.asarray(source[layer.name], np.float64), aligned, maps[layer.name], maps[before.name], tied)
        mass = np.asarray(transport.proportional_mass(scores[before.name]), np.float64)
        yield from _is_a_plan(
            shared, maps[before.name], tied, mass, name=f"fused_{gamma}/ties_before/{_stored(reference, layer)}"
        )
        maps[before.name][tied] = shared
        notes[layer.name] = _TIED
    kernels = fusion.map_neurons(pruned, layers, {name: jnp.asarray(m, jnp.float32) for name, m in maps.items()})
    arrays = {name: {name: kernel} for name, kernel in kernels.items()}
    fused = fusion.interpolate(victim, alignment._replace(arrays=arrays), lam=lam)
    for layer in layers:
        if bool(alignment.info.fused[layer.name]):
            yield compare(
                f"fused_{gamma}/{_stored(reference, layer)}",
                np.asarray(named_leaves(fused)[layer.name]),
                expected[layer.name],
                tolerance=_FUSED,
                note=notes[layer.name],
            )
    still = [layer for layer in layers if not alignment.info.fused[layer.name]]
    if still:
        moved = max(float(np.max(np.abs(expected[layer.name] - np.asarray(original[layer.name])))) for layer in still)
        yield judge(
            f"fused_{gamma}/untouched", moved, moved, tolerance=0.0, note="layers before the first pruned neuron"
        )
    yield compare(
        f"fused_{gamma}/logits",
        reference.logits(fused),
        reference.array(f"otbr/fused_{gamma}/logits"),
        tolerance=10 * _FUSED,
        note=_TIED if any(notes.values()) else "",
    )


def _shares(
    kernel: np.ndarray, aligned: np.ndarray, own: np.ndarray, before: np.ndarray, tied: np.ndarray
) -> np.ndarray:
    """How much of each tied input neuron went into each input of an aligned kernel: least squares, `[tied, inputs]`.

    Args:
      kernel: of the pruned network, `[h, w, inputs, neurons]`.
      aligned: the same kernel, inputs and neurons mapped.
      own: the map of its neurons.
      before: the map of its inputs, of which the rows of tied neurons are to be found.
      tied: bool `[inputs]`.
    """
    by_input = np.einsum("hwio,op->ihwp", kernel, own).reshape(len(before), -1)
    rest = aligned.transpose(2, 0, 1, 3).reshape(len(before), -1) - before[~tied].T @ by_input[~tied]
    return np.linalg.lstsq(by_input[tied].T, rest.T, rcond=None)[0]


def _is_a_plan(
    shared: np.ndarray, before: np.ndarray, tied: np.ndarray, mass: np.ndarray, *, name: str
) -> Iterator[Comparison]:
    """The shares are an optimal plan's: none below zero, the same mass from each tied neuron and to each target."""
    yield judge(f"{name}/negative", max(0.0, -shared.min()), max(0.0, -shared.min()), tolerance=_FUSED)
    yield compare(f"{name}/to_each_target", shared.sum(0), before[tied].sum(0), tolerance=_FUSED, scale=1.0)
    yield compare(f"{name}/from_each_source", shared @ mass, np.full(len(shared), 1 / len(tied)), tolerance=10 * _FUSED)


def _entropic(
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
    note = f"worst of {len(fused)} layers: {tensor_name(worst)}; entropic against exact"
    absolute = abs(float(plans[worst].cost - exact.plans[worst].cost))
    yield judge(f"sinkhorn_{gamma}/plan_cost", absolute, abs(gaps[worst]), tolerance=1e-2, note=note)
    error = max(float(plans[layer.name].marginal_error) for layer in fused)
    yield judge(f"sinkhorn_{gamma}/marginals", error, error, tolerance=5e-3, note="L1, worst layer")
    first = fused[0]
    kernel = named_leaves(fusion.interpolate(victim, entropic, lam=reference.setting("otbr", "lambda")))[first.name]
    expected = _fused_kernel(reference, first, gamma)
    difference = np.asarray(kernel) - expected
    yield judge(
        f"sinkhorn_{gamma}/{_stored(reference, first)}",
        float(np.max(np.abs(difference))),
        float(np.linalg.norm(difference) / np.linalg.norm(expected)),
        tolerance=0.1,
        note="Euclidean norm; in later layers entropic plans share ties evenly, exact ones do not",
    )


def _named(layers: Sequence[Layer], name: str) -> Layer:
    return next(layer for layer in layers if layer.name == name)


def _stored(reference: Reference, layer: Layer) -> str:
    return reference.names[tensor_name(layer.name)]


def _fused_kernel(reference: Reference, layer: Layer, gamma: str) -> np.ndarray:
    """The reference's fused kernel as `[h, w, inputs, neurons]`."""
    return reference.array(f"otbr/fused_{gamma}/{_stored(reference, layer)}").transpose(2, 3, 1, 0).astype(np.float64)
