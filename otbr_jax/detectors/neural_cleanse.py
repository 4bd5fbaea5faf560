"""Neural Cleanse: flags the class whose inverted patch is far smaller than those of other classes.

Source: Wang et al., Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks, S&P 2019, and the
authors' code, which has the schedule of the weight. What differs: an inversion has a fixed number of Adam's steps,
where the authors go through all clean images for up to a thousand rounds or until the mask no longer changes; the
success rate is measured on one mini-batch a step; and images of the class itself, which need no trigger, do not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from otbr_jax.detectors.detector import Detector
from otbr_jax.detectors.verdict import FEWEST, Verdict, verdict_of
from otbr_jax.inversion import InvertedTriggers, Penalised, Schedule, invert_from, success_rate
from otbr_jax.metrics import rounded
from otbr_jax.plan import Plan, Report, Setup, Shown, Step, needs
from otbr_jax.settings import field, settings
from otbr_jax.triggers import TriggerFamily
from otbr_jax.triggers.patch import Patch, replace
from otbr_jax.types import Batch, Network, Variables, in_unit_range


@settings("neural_cleanse")
class NeuralCleanseConfig:
    """How patches are inverted, and when one is too small; the defaults are the authors', but for the steps."""

    steps: int = field(default=300, at_least=1, doc="of Adam, for every class.")
    batch_size: int = field(default=32, at_least=1, doc="clean images in a step, one batch after the other.")
    learning_rate: float = field(default=0.1, above=0, doc="of Adam, whose betas are 0.5 and 0.9.")
    weight: float = field(
        default=1e-3, above=0, doc="of the mask's L1 norm, once the patch reaches `success` for the first time."
    )
    multiplier: float = field(
        default=2.0,
        above=1,
        doc="the weight is multiplied with it where the patch has reached `success` for `patience` steps, and divided "
        "by its 1.5th power where it has not.",
    )
    patience: int = field(default=5, at_least=1, doc="steps before the weight changes.")
    success: float = field(
        default=0.99,
        above=0,
        at_most=1,
        doc="success rate that a patch has to reach: share of a step's images of other classes.",
    )
    threshold: float = field(default=2.0, above=0, doc="the anomaly index from which a class is flagged.")


class Masks(NamedTuple):
    """The smallest successful patch of each class.

    Attributes:
      patch: masks `[classes, h, w, 1]` and patterns `[classes, h, w, c]`; the last ones where none was successful.
      norm: L1 norm of the masks, `[classes]`.
      success: success rate on all clean images of other classes, `[classes]`, in [0, 1].
    """

    patch: Patch
    norm: jax.Array
    success: jax.Array


def _start(keys: tuple[jax.Array, jax.Array] | jax.Array, image_shape: tuple[int, int, int]) -> Patch:
    mask_key, pattern_key = keys
    mask = jax.random.uniform(mask_key, (*image_shape[:2], 1), minval=0.01, maxval=0.99)
    pattern = jax.random.uniform(pattern_key, image_shape, minval=0.01, maxval=0.99)
    return Patch(*(jnp.arctanh(2 * part - 1) for part in (mask, pattern)))


MASK = TriggerFamily(
    name="mask",
    unit="L1 norm of the mask",
    init=lambda key, image_shape: _start(jax.random.split(key), image_shape),
    apply=lambda images, patch, budget: replace(images, patch),
    learning_rate=0.1,
    parameters=lambda latent: Patch(*(0.5 + 0.5 * jnp.tanh(part) for part in latent)),
    size=lambda patch: jnp.sum(patch.mask),
)
"""The authors' patch: mask and pattern are `(1 + tanh) / 2` of the latent."""


def invert_mask(
    network: Network,
    variables: Variables,
    clean: Batch,
    target: jax.Array | int,
    *,
    key: jax.Array,
    config: NeuralCleanseConfig,
) -> InvertedTriggers:
    """Inverts a small patch that turns clean images into one class. Pure; jits.

    Args:
      network: the functions of the network.
      variables: its variables.
      clean: images `[n, h, w, c]`, uint8 or in [0, 1], and their labels `[n]`, whole numbers.
      target: the class; may be traced.
      key: typed PRNG key: where the inversion starts, and the order of the images.
      config: the settings.

    Returns:
      The patch; its success rate is that on all clean images.
    """
    images = Batch(in_unit_range(jnp.asarray(clean.images)), jnp.asarray(clean.labels))
    mask_key, pattern_key, order_key = jax.random.split(key, 3)
    order = jax.random.permutation(order_key, len(images.labels))
    patch, _ = invert_from(
        _start((mask_key, pattern_key), network.image_shape),
        network,
        variables,
        jax.tree.map(lambda leaf: leaf[order], images),
        MASK._replace(learning_rate=config.learning_rate),
        target,
        aim=Penalised(config.weight, Schedule(config.success, config.multiplier, config.patience)),
        steps=config.steps,
        batch_size=config.batch_size,
        optimizer=optax.scale_by_adam(b1=0.5, b2=0.9),
    )
    success = success_rate(network, variables, images, MASK.trigger(patch.parameters), target)
    return patch._replace(success=success)


def search_masks(
    setup: Setup,
    settings: NeuralCleanseConfig,
    *,
    victim: Variables,
    clean: Batch,
    key: jax.Array,
    report: Report | None,
) -> Masks:
    """Inverts a patch for every class, one class after the other in one program."""
    network = setup.network

    def one(target: jax.Array) -> Masks:
        patch = invert_mask(network, victim, clean, target, key=jax.random.fold_in(key, target), config=settings)
        if report is not None:
            jax.debug.callback(report)
        return Masks(*patch)

    return jax.lax.map(one, jnp.arange(network.num_classes))


def anomaly_indices(norms: np.ndarray) -> np.ndarray:
    """By how many deviations each norm `[classes]` is below the median; at most 0 for those above.

    A deviation is 1.4826 times the median absolute deviation, which estimates a normal distribution's standard
    deviation.
    """
    median = np.median(norms)
    deviation = 1.4826 * np.median(np.abs(norms - median))
    indices: np.ndarray = (median - norms) / max(deviation, 1e-6 * max(median, 1e-6))
    return indices


def plan(config: NeuralCleanseConfig) -> Plan:
    """One step, `masks`."""
    return (
        Step(
            "masks",
            search_masks,
            needs("victim", "clean"),
            config,
            shown=Shown("inverting patches", total=lambda setup: setup.network.num_classes, unit="class"),
        ),
    )


def verdict(config: NeuralCleanseConfig, values: Mapping[str, Any]) -> Verdict:
    """The verdict on the largest anomaly index of a class whose mask is smaller than the median."""
    norms = np.asarray(values["masks"].norm, np.float64)
    evidence = {"mask_norm": tuple(rounded(norm) for norm in norms)}
    return verdict_of(anomaly_indices(norms), threshold=config.threshold, evidence=evidence)


def patches(config: NeuralCleanseConfig, values: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Each class's mask `[classes, h, w, 1]` and pattern `[classes, h, w, c]`, in [0, 1]."""
    del config
    patch = values["masks"].patch
    return np.asarray(patch.mask), np.asarray(patch.pattern)


DETECTOR = Detector(
    name="neural_cleanse",
    Config=NeuralCleanseConfig,
    data="clean images",
    plan=plan,
    verdict=verdict,
    fewest_classes=FEWEST,
    triggers=patches,
)
