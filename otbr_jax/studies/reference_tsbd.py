"""Every stage of TSBD against reference numbers (see `references`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.errors import InputError
from otbr_jax.graph.trace import trace
from otbr_jax.interop.state_dict import tensor_name
from otbr_jax.steps.finetune import FinetuningConfig, begin, optimizer_of, step_fn, variables_of
from otbr_jax.steps.prune import neurons_to_prune, reinitialize
from otbr_jax.steps.score import neuron_weight_changes
from otbr_jax.steps.unlearn import UnlearningConfig, unlearn
from otbr_jax.studies.comparison import (
    Comparison,
    compare,
    compare_choice,
    compare_neurons,
    nearly_equal_starts,
    norm,
)
from otbr_jax.studies.references import Reference
from otbr_jax.types import Batch, Variables, named_leaves, replace_leaves

_LOGITS = 1e-4
_NWC = 1e-3
_BAND = 1e-3  # of the threshold's weight change
_FINETUNED = 5e-3  # of how far the reference moved: rounding in a few steps, and an activation that passes zero or not
_FINETUNED_LOGITS = 0.02  # of the largest one


def check_tsbd(reference: Reference) -> Iterator[Comparison]:
    """Yields the comparisons of all stages, each computed from what this project computed before it.

    Clean unlearning on the stored batches, NWC, the zeroed weights, and the stored number of fine-tuning steps.

    Raises:
      InputError: names what the file lacks.
    """
    network, victim = reference.network, reference.variables("victim")
    starts = nearly_equal_starts(victim)
    logits = [reference.logits(start) for start in starts]
    yield compare("victim_logits", logits, reference.array("victim_logits"), least=_LOGITS)

    clean = reference.batches("tsbd/images", "tsbd/labels")
    steps, batch_size = clean.labels.shape
    rate, momentum = reference.setting("otbr", "lr"), reference.setting("otbr", "momentum")
    unlearning = UnlearningConfig(steps, batch_size, rate, momentum)
    ascend = jax.jit(lambda variables: unlearn(network, variables, clean, config=unlearning)[0])
    unlearned = [ascend(start) for start in starts]

    layers = trace(network.apply, victim, clean.images[0]).main_convolutions
    names = {layer.name: reference.names[tensor_name(layer.name)] for layer in layers}
    scores = [neuron_weight_changes(start, end, layers) for start, end in zip(starts, unlearned, strict=True)]
    for layer, name in names.items():
        ours = [np.asarray(score[layer]) for score in scores]
        yield compare_neurons(f"nwc/{name}", ours, reference.array(f"tsbd/nwc/{name}"), least=_NWC)

    n, m = reference.setting("tsbd", "n"), reference.setting("tsbd", "m")
    count = neurons_to_prune(n, sum(layer.neurons for layer in layers))
    _, info = reinitialize(victim, unlearned[0], scores[0], layers, count=count, share=m)
    zeroed = {
        layer: _mask(reference, f"tsbd/zeroed_{n}_{m}/{name}", info.zeroed[layer].shape)
        for layer, name in names.items()
    }
    kernels = [_flat(named_leaves(start), names) for start in starts]
    chosen = compare_choice(
        f"zeroed_{n}_{m}",
        _flat(info.zeroed, names),
        _flat(zeroed, names),
        [np.abs(_flat(named_leaves(end), names) - kernel) for end, kernel in zip(unlearned, kernels, strict=True)],
        least=_BAND,
        steps=2 * np.spacing(np.abs(kernels[0])),  # weights are stored in float32, so that their changes come in steps
        things="weights",
    )
    yield chosen
    if not chosen.passed:  # other weights, another network
        return
    starts = [_zeroed(start, zeroed) for start in starts]
    logits = [reference.logits(start) for start in starts]
    yield compare("reinit_logits", logits, reference.array("tsbd/reinit_logits"), least=_LOGITS)
    yield from _compare_finetuned(reference, starts, clean)


def _flat(arrays: Mapping[str, Any], names: Iterable[str]) -> np.ndarray:
    return np.concatenate([np.ravel(arrays[name]) for name in names])


def _zeroed(variables: Variables, masks: Mapping[str, np.ndarray]) -> Variables:
    leaves = named_leaves(variables)
    return replace_leaves(variables, {name: jnp.where(mask, 0.0, leaves[name]) for name, mask in masks.items()})


def _mask(reference: Reference, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A stored mask of a convolution in this project's layout."""
    mask = reference.array(name)
    if mask.ndim != 4:
        raise InputError(f"--reference: expected {name} as a mask of a convolution, found shape {mask.shape}")
    mask = mask.astype(bool).transpose(2, 3, 1, 0)
    if mask.shape != shape:
        raise InputError(f"--reference: expected a mask of shape {shape} for {name}, found {mask.shape}")
    return mask


def _compare_finetuned(reference: Reference, starts: Sequence[Variables], clean: Batch) -> Iterator[Comparison]:
    """Compares the networks after the stored steps of fine-tuning, which amplify rounding."""
    settings = {
        "learning_rate": reference.setting("tsbd", "lr"),
        "momentum": reference.setting("tsbd", "momentum"),
        "radius": reference.setting("tsbd", "r"),
        "alpha": reference.setting("tsbd", "alpha"),
    }
    steps = reference.setting("tsbd", "ft_steps")
    optimizer = optimizer_of(FinetuningConfig(**settings), steps)
    batches = Batch(clean.images[:steps], clean.labels[:steps])
    step = step_fn(reference.network, starts[0], optimizer)
    tune = jax.jit(lambda variables: variables_of(jax.lax.scan(step, begin(variables, optimizer), batches)[0]))
    expected = {name: reference.array(f"tsbd/finetuned/{name}") for name in reference.names.values()}
    stored = reference.array("tsbd/finetuned_logits")
    tuned = [tune(start) for start in starts]
    before = reference.tensors(starts[0])
    for title, names in _parts(expected):
        wanted = _flat(expected, names)
        yield compare(
            f"finetuned_{title}",
            [_flat(reference.tensors(end), names) for end in tuned],
            wanted,
            least=_FINETUNED,
            scale=norm(wanted - _flat(before, names)),
            of="how far the reference moved, in L2 norm",
            measure=norm,
        )
    logits = [reference.logits(end) for end in tuned]
    yield compare("finetuned_logits", logits, stored, least=_FINETUNED_LOGITS, of="the largest logit")


def _parts(expected: dict[str, np.ndarray]) -> list[tuple[str, list[str]]]:
    statistics = [name for name in expected if name.rpartition(".")[2] in ("running_mean", "running_var")]
    parts = [("parameters", [name for name in expected if name not in statistics]), ("statistics", statistics)]
    return [(title, names) for title, names in parts if names]
