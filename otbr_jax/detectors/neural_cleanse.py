"""Neural Cleanse: the attacker's class is the one that a far smaller patch than any other's reaches.

Source: Wang et al., Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks, S&P 2019, and the
authors' code, from which the weight's schedule is. What differs: a number of Adam's steps bounds the search, where the
authors go through all clean images for up to a thousand rounds or until the mask stays as it is; each step's success
is of one mini-batch; and images of the class itself, which need no trigger, do not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from otbr_jax.detectors.detector import Detector, Verdict
from otbr_jax.metrics import settled
from otbr_jax.plan import Plan, Report, Setup, Shown, Step, needs
from otbr_jax.settings import field, settings
from otbr_jax.steps.convolutions import channels_last
from otbr_jax.triggers.penalised import Patch, stamp
from otbr_jax.types import Batch, Network, Variables, in_unit_range


@settings("neural_cleanse")
class NeuralCleanseConfig:
    """How patches are searched, and when one is too small; the defaults are the authors', but for the steps."""

    steps: int = field(default=300, at_least=1, doc="of Adam, for every class.")
    batch_size: int = field(default=32, at_least=1, doc="clean images of a step, in turn.")
    learning_rate: float = field(default=0.1, above=0, doc="of Adam, whose betas are 0.5 and 0.9.")
    weight: float = field(default=1e-3, above=0, doc="of the mask's L1 norm, once the patch works for the first time.")
    multiplier: float = field(
        default=2.0,
        above=1,
        doc="of that weight where the patch has worked for `patience` steps; where it has not, it is divided by its "
        "1.5th power.",
    )
    patience: int = field(default=5, at_least=1, doc="steps before the weight changes.")
    success: float = field(
        default=0.99, above=0, at_most=1, doc="share of a step's images of other classes that a patch has to turn."
    )
    threshold: float = field(default=2.0, above=0, doc="the anomaly index from which a class stands out.")


class Masks(NamedTuple):
    """The smallest patch that worked, of each class.

    Attributes:
      patch: masks `[classes, h, w, 1]` and patterns `[classes, h, w, c]`; the last ones where none worked.
      norm: L1 norm of the masks, `[classes]`.
      success: share of all clean images of other classes that the patch turns, `[classes]`.
    """

    patch: Patch
    norm: jax.Array
    success: jax.Array


class _State(NamedTuple):
    """Of one class's search."""

    latent: Patch
    moments: Any
    weight: jax.Array
    up: jax.Array
    down: jax.Array
    best: Patch
    norm: jax.Array


def search_mask(
    network: Network,
    variables: Variables,
    clean: Batch,
    target: jax.Array | int,
    *,
    key: jax.Array,
    config: NeuralCleanseConfig,
) -> tuple[Patch, jax.Array]:
    """The smallest patch found that turns clean images into one class. Pure; jits.

    Args:
      network: the functions of the network.
      variables: its variables.
      clean: images `[n, h, w, c]`, uint8 or in [0, 1], and their labels `[n]`, whole numbers.
      target: the class; may be traced.
      key: typed PRNG key: where the search starts, and the order of the images.
      config: how.

    Returns:
      `(patch, whether it worked in the step that it is of)`.
    """
    images, labels = in_unit_range(jnp.asarray(clean.images)), jnp.asarray(clean.labels)
    mask_key, pattern_key, order_key = jax.random.split(key, 3)
    height, width, channels = network.image_shape
    optimizer = optax.adam(config.learning_rate, b1=0.5, b2=0.9)
    order = jax.random.permutation(order_key, len(labels))

    def patch_of(latent: Patch) -> Patch:
        return Patch(*(0.5 + 0.5 * jnp.tanh(part) for part in latent))

    def objective(latent: Patch, weight: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        patch = patch_of(latent)
        logits = network.answer(variables, stamp(batch.images, patch)).astype(jnp.float32)
        wanted = jnp.full(len(logits), target)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
        others = (batch.labels != target).astype(jnp.float32)
        count = jnp.maximum(jnp.sum(others), 1.0)
        turned = jnp.sum((jnp.argmax(logits, axis=-1) == wanted) * others) / count
        return jnp.sum(losses * others) / count + weight * jnp.sum(patch.mask), turned

    gradient = channels_last(jax.grad(objective, has_aux=True))

    def step(state: _State, index: jax.Array) -> tuple[_State, None]:
        places = order[(index * config.batch_size + jnp.arange(config.batch_size)) % len(labels)]
        slope, turned = gradient(state.latent, state.weight, Batch(images[places], labels[places]))
        patch, works = patch_of(state.latent), turned >= config.success
        smaller = works & (jnp.sum(patch.mask) < state.norm)
        best = jax.tree.map(lambda new, old: jnp.where(smaller, new, old), patch, state.best)
        norm = jnp.where(smaller, jnp.sum(patch.mask), state.norm)
        up, down = jnp.where(works, state.up + 1, 0), jnp.where(works, 0, state.down + 1)
        stronger, weaker = up >= config.patience, down >= config.patience
        raised = jnp.where(state.weight > 0, state.weight * config.multiplier, config.weight)
        weight = jnp.where(stronger, raised, jnp.where(weaker, state.weight / config.multiplier**1.5, state.weight))
        updates, moments = optimizer.update(slope, state.moments)
        latent = optax.apply_updates(state.latent, updates)
        return _State(latent, moments, weight, jnp.where(stronger, 0, up), jnp.where(weaker, 0, down), best, norm), None

    start = Patch(
        jax.random.uniform(mask_key, (height, width, 1), minval=0.01, maxval=0.99),
        jax.random.uniform(pattern_key, (height, width, channels), minval=0.01, maxval=0.99),
    )
    latent = jax.tree.map(lambda part: jnp.arctanh(2 * part - 1), start)
    none = jnp.zeros((), jnp.int32)
    state = _State(latent, optimizer.init(latent), jnp.zeros(()), none, none, start, jnp.array(jnp.inf))
    state, _ = jax.lax.scan(step, state, jnp.arange(config.steps))
    worked = jnp.isfinite(state.norm)
    last = patch_of(state.latent)
    return jax.tree.map(lambda best, last: jnp.where(worked, best, last), state.best, last), worked


def search_masks(
    setup: Setup,
    settings: NeuralCleanseConfig,
    *,
    victim: Variables,
    clean: Batch,
    key: jax.Array,
    report: Report | None,
) -> Masks:
    """A patch for every class, one class after the other in one program."""
    network, (images, labels) = setup.network, clean

    def one(target: jax.Array) -> Masks:
        patch, _ = search_mask(network, victim, clean, target, key=jax.random.fold_in(key, target), config=settings)
        answers = jnp.argmax(network.answer(victim, stamp(in_unit_range(images), patch)), axis=-1)
        others = labels != target
        success = jnp.sum((answers == target) & others) / jnp.maximum(jnp.sum(others), 1)
        if report is not None:
            jax.debug.callback(report)
        return Masks(patch, jnp.sum(patch.mask), success)

    return jax.lax.map(one, jnp.arange(network.num_classes))


def anomaly_indices(norms: np.ndarray) -> np.ndarray:
    """By how many deviations each norm `[classes]` is below the median; at most 0 for those above.

    A deviation is 1.4826 times the median absolute one, which is a normal distribution's standard deviation.
    """
    middle = np.median(norms)
    deviation = 1.4826 * np.median(np.abs(norms - middle))
    indices: np.ndarray = (middle - norms) / max(deviation, 1e-6 * max(middle, 1e-6))
    return indices


def plan(config: NeuralCleanseConfig) -> Plan:
    """One step, `masks`."""
    return (
        Step(
            "masks",
            search_masks,
            needs("victim", "clean"),
            config,
            shown=Shown("reverse-engineering patches", total=lambda setup: setup.network.num_classes, unit="class"),
        ),
    )


def verdict(config: NeuralCleanseConfig, values: Mapping[str, Any]) -> Verdict:
    """The largest anomaly index of a class whose mask is smaller than the median."""
    indices = anomaly_indices(np.asarray(values["masks"].norm, np.float64))
    suspect, scores = int(np.argmax(indices)), tuple(settled(index) for index in indices)
    return Verdict(scores[suspect], suspect, scores[suspect] > config.threshold, config.threshold, None, scores)


def patches(config: NeuralCleanseConfig, values: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Each class's mask and pattern."""
    del config
    found = values["masks"].patch
    return np.asarray(found.mask), np.asarray(found.pattern)


DETECTOR = Detector(
    name="neural_cleanse",
    Config=NeuralCleanseConfig,
    data="clean images",
    by="clean images",
    score="anomaly index",
    plan=plan,
    verdict=verdict,
    triggers=patches,
)
