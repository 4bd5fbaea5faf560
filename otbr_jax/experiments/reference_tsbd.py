"""Every stage of TSBD against reference numbers (see `references`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.errors import InputError
from otbr_jax.experiments.comparing import Comparison, compare, compare_each, judge
from otbr_jax.experiments.references import Reference
from otbr_jax.finetuning import FinetuningConfig, begin, optimizer_of, step_fn, variables_of
from otbr_jax.interop.state_dict import tensor_name
from otbr_jax.neurons import trace
from otbr_jax.pruning import neurons_to_prune, reinitialize
from otbr_jax.types import Batch, Variables, named_leaves, replace_leaves
from otbr_jax.unlearning import UnlearningConfig, unlearn
from otbr_jax.weight_change import neuron_weight_changes

_LOGITS = 1e-4
_NWC = 1e-3
_BAND = 1e-3  # of the threshold's weight change: nearer than rounding in twenty steps tells changes apart
_FINETUNED = 0.02  # of how far the reference moved
_FINETUNED_LOGITS = 0.1  # of the largest one
_SENSITIVITY = 4.0
_ROUNDING = 1e-7  # relative: float32 tells weights apart to 6e-8
_STARTS = 6


def check_tsbd(reference: Reference) -> Iterator[Comparison]:
    """Yields the comparisons of all stages, each computed from what this project computed before it.

    Clean unlearning on the stored batches, NWC, the zeroed weights, and the stored number of fine-tuning steps.

    Raises:
      InputError: names what the file lacks.
    """
    network, victim = reference.network, reference.variables("victim")
    yield compare("victim_logits", reference.logits(victim), reference.array("victim_logits"), tolerance=_LOGITS)

    clean = reference.batches("tsbd/images", "tsbd/labels")
    steps, batch_size = clean.labels.shape
    rate, momentum = reference.setting("otbr", "lr"), reference.setting("otbr", "momentum")
    unlearning = UnlearningConfig(steps, batch_size, rate, momentum)
    unlearned, _ = jax.jit(lambda variables: unlearn(network, variables, clean, config=unlearning))(victim)

    layers = trace(network.apply, victim, clean.images[0]).main_convolutions
    names = {layer.name: reference.names[tensor_name(layer.name)] for layer in layers}
    scores = neuron_weight_changes(victim, unlearned, layers)
    for layer, name in names.items():
        yield compare_each(
            f"nwc/{name}", np.asarray(scores[layer]), reference.array(f"tsbd/nwc/{name}"), tolerance=_NWC
        )

    n, m = reference.setting("tsbd", "n"), reference.setting("tsbd", "m")
    count = neurons_to_prune(n, sum(layer.neurons for layer in layers))
    _, info = reinitialize(victim, unlearned, scores, layers, count=count, share=m)
    stored = {layer.name: _mask(reference, f"tsbd/zeroed_{n}_{m}/{names[layer.name]}") for layer in layers}
    own = {name: np.asarray(mask) for name, mask in info.zeroed.items()}
    clear, near = _disagreements(victim, unlearned, own, stored)
    note = f"; {near} more lie within {_BAND:g} of the threshold, nearer than rounding tells apart" if near else ""
    total = sum(int(mask.sum()) for mask in stored.values())
    yield judge(
        f"zeroed_{n}_{m}",
        clear,
        clear / max(total, 1),
        tolerance=0.0,
        note=f"weights in one set only, of {total}{note}",
    )
    if clear:  # other weights, another network
        return
    kernels = named_leaves(victim)
    start = replace_leaves(victim, {name: jnp.where(mask, 0.0, kernels[name]) for name, mask in stored.items()})
    yield compare("reinit_logits", reference.logits(start), reference.array("tsbd/reinit_logits"), tolerance=_LOGITS)
    yield from _finetuned(reference, start, clean)


def _mask(reference: Reference, name: str) -> np.ndarray:
    """A stored mask of a convolution in this project's layout."""
    mask = reference.array(name)
    if mask.ndim != 4:
        raise InputError(f"--reference: expected {name} as a mask of a convolution, found shape {mask.shape}")
    return mask.astype(bool).transpose(2, 3, 1, 0)


def _disagreements(
    victim: Variables, unlearned: Variables, own: dict[str, np.ndarray], stored: dict[str, np.ndarray]
) -> tuple[int, int]:
    """How many weights only one of the masks zeroes, clear of the threshold and too near it to tell."""
    before, after = named_leaves(victim), named_leaves(unlearned)
    changes = {name: np.abs(np.asarray(after[name], np.float64) - np.asarray(before[name])) for name in own}
    zeroed = np.concatenate([changes[name][mask] for name, mask in own.items()])
    threshold = zeroed.min() if zeroed.size else np.inf
    clear = near = 0
    for name, mask in own.items():
        if mask.shape != stored[name].shape:
            raise InputError(
                f"--reference: expected a mask of shape {mask.shape} for {name}, found {stored[name].shape}"
            )
        differ = mask != stored[name]
        # Weights are stored in float32, so that their changes come in steps.
        steps = 2 * np.spacing(np.abs(np.asarray(before[name])[differ]))
        close = np.abs(changes[name][differ] - threshold) <= _BAND * threshold + steps
        clear, near = clear + int((~close).sum()), near + int(close.sum())
    return clear, near


def _finetuned(reference: Reference, start: Variables, clean: Batch) -> Iterator[Comparison]:
    """The network after the stored steps of fine-tuning.

    These steps amplify rounding: the tolerance is a multiple of how far this project's own results lie apart when
    the start is changed by what float32 cannot tell apart, at least what other compilations were seen to differ by.
    """
    settings = {
        "learning_rate": reference.setting("tsbd", "lr"),
        "momentum": reference.setting("tsbd", "momentum"),
        "radius": reference.setting("tsbd", "r"),
        "alpha": reference.setting("tsbd", "alpha"),
    }
    steps = reference.setting("tsbd", "ft_steps")
    optimizer = optimizer_of(FinetuningConfig(**settings), steps=steps)
    batches = Batch(clean.images[:steps], clean.labels[:steps])
    step = step_fn(reference.network, start, optimizer)
    tune = jax.jit(lambda variables: variables_of(jax.lax.scan(step, begin(variables, optimizer), batches)[0]))
    expected = {name: reference.array(f"tsbd/finetuned/{name}") for name in reference.names.values()}
    stored = reference.array("tsbd/finetuned_logits")
    found = tune(start)
    others = [tune(_nearly(start, seed)) for seed in range(_STARTS)]
    before, after = reference.tensors(start), reference.tensors(found)
    for title, names in _parts(expected):
        moved = _distance(expected, before, names) or 1.0
        own = max(_distance(reference.tensors(other), after, names) for other in others) / moved
        error = _distance(expected, after, names)
        note = _sensitive(own, "how far the reference moved, in L2 norm")
        yield judge(f"finetuned_{title}", error, error / moved, tolerance=_tolerance(own, _FINETUNED), note=note)
    logits = reference.logits(found)
    largest = float(np.max(np.abs(stored)))
    own = max(float(np.max(np.abs(reference.logits(other) - logits))) for other in others) / largest
    yield compare(
        "finetuned_logits",
        logits,
        stored,
        tolerance=_tolerance(own, _FINETUNED_LOGITS),
        note=_sensitive(own, "the largest logit"),
    )


def _parts(expected: dict[str, np.ndarray]) -> list[tuple[str, list[str]]]:
    statistics = [name for name in expected if name.rpartition(".")[2] in ("running_mean", "running_var")]
    parts = [("parameters", [name for name in expected if name not in statistics]), ("statistics", statistics)]
    return [(title, names) for title, names in parts if names]


def _nearly(variables: Variables, seed: int) -> Variables:
    """The same parameters but for rounding; what is zero stays zero."""
    generator = np.random.default_rng(seed)
    changed = {
        name: array * (1 + _ROUNDING * generator.standard_normal(array.shape)).astype(array.dtype)
        for name, array in named_leaves(variables).items()
        if name.startswith("params/")
    }
    return replace_leaves(variables, changed)


def _tolerance(own: float, least: float) -> float:
    return float(f"{max(least, _SENSITIVITY * own):.3g}")


def _sensitive(own: float, scale: str) -> str:
    return (
        f"relative to {scale}; a start changed by {_ROUNDING:g}, as rounding does, gives results {own:.2g} apart "
        f"(the largest of {_STARTS})"
    )


def _distance(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], names: Sequence[str]) -> float:
    return float(np.sqrt(sum(np.sum(np.square(first[name] - second[name], dtype=np.float64)) for name in names)))
