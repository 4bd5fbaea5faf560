"""Anomaly scores of classes, from the sizes of their minimal triggers, their maximum margins and class bias.

Classes differ in how large their minimal triggers are, whatever the family, and so do families, whatever the class. A
backdoor is neither: it makes the target class's minimal trigger too small for the families that its trigger resembles.
How much each kind of evidence varies among clean networks says how much it counts.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.detectors.calibration import CleanEvidence
from otbr_jax.detectors.verdict import FEWEST, Detected

UNLEARN = ("suspect", "all")
"""Which classes' triggers a repair unlearns: those of a class that is flagged; or of all, whether one is or not."""

MAXIMUM_MARGIN, CLASS_BIAS = "maximum_margin", "class_bias"
"""The names of the evidence that is of no trigger family."""

_SLACK = 1.2  # by how much the triggers that are unlearned are larger than minimal ones, at least


class Anomalies(NamedTuple):
    """What trigger sizes, maximum margins and class bias say of each class.

    Attributes:
      detected: the anomaly score of each class, 0 of those that were not searched. A score is how far the evidence is
        above that of clean networks, all kinds together: the root of the sum of squares, in standard deviations.
      classes: int `[searched]`, the classes that what follows is of.
      evidence: `[families + 2, searched]`, natural logarithms: by what factor each family's minimal trigger is smaller
        than expected, by what factor the maximum margin is larger than other classes', and the odds that a procedural
        image is predicted as the class, over even ones.
      wanted: bool `[families, searched]`, the triggers that are to be unlearned: the most anomalous families of the
        suspect, if it is flagged; or all that are smaller than in clean networks.
      budget: `[families, searched]`, the size of triggers that are unlearned: between the minimal size of the class and
        the median over classes.
    """

    detected: Detected
    classes: jax.Array
    evidence: jax.Array
    wanted: jax.Array
    budget: jax.Array


def size_anomalies(sizes: jax.Array) -> jax.Array:
    """By what factor each minimal trigger is smaller than expected, `[families, classes]`, as a natural logarithm.

    Expected is the median of the family's classes, and more if the class's triggers of the other families are large
    (their upper quartile). A class whose triggers of all families are small is expected no smaller ones: several
    families can resemble a backdoor's trigger. The model is additive in logarithms. One family alone is compared with
    its other classes.

    Args:
      sizes: of minimal triggers, `[families, classes]`, above 0.
    """
    logarithms = jnp.log(sizes)
    residual = logarithms - jnp.median(logarithms, axis=1, keepdims=True)
    count = len(sizes)
    if count == 1:
        return -residual
    others = jnp.stack([jnp.percentile(jnp.delete(residual, index, axis=0), 75, axis=0) for index in range(count)])
    return jnp.maximum(others, 0.0) - residual


def z_scores(evidence: jax.Array, families: tuple[str, ...], clean_evidence: CleanEvidence) -> jax.Array:
    """Evidence `[families + 2, classes]` in standard deviations above the median of clean networks."""
    names = (*families, MAXIMUM_MARGIN, CLASS_BIAS)
    median, deviation = (jnp.array([clean_evidence[name][place] for name in names])[:, None] for place in (0, 1))
    return (evidence - median) / deviation


def find_anomalies(
    sizes: jax.Array,
    maximum_margins: jax.Array,
    frequencies: jax.Array,
    *,
    clean_evidence: CleanEvidence,
    families: tuple[str, ...],
    threshold: float,
    share: float,
    budget: float,
    unlearn: str,
    classes: jax.Array | None = None,
    num_classes: int | None = None,
) -> Anomalies:
    """Scores classes, flags the one with the highest score, and chooses which triggers to unlearn. Pure; jits.

    Args:
      sizes: of minimal triggers, `[families, searched]`, each in its family's unit.
      maximum_margins: of each class, `[searched]`, differences of logits.
      frequencies: shares of the procedural images that are predicted as each class, `[searched]`, in [0, 1].
      clean_evidence: the largest evidence of any class in clean networks.
      families: the families' names.
      threshold: the anomaly score from which a class is flagged.
      share: triggers are unlearned of families with at least this share of the suspect's largest evidence.
      budget: the size of triggers that are unlearned: between the class's minimal one (0) and the median over classes
        (1), as logarithms.
      unlearn: which classes' triggers are unlearned, one of `UNLEARN`.
      classes: int `[searched]`, which were searched; by default all.
      num_classes: how many classes the network has, where these are some of them.
    """
    num_classes = num_classes or len(frequencies)
    classes = jnp.arange(num_classes) if classes is None else classes
    median = jnp.median(maximum_margins)
    # Where half of the classes can never be predicted, a factor over the median says nothing.
    factor = jnp.maximum(maximum_margins, 1e-3) / jnp.where(median > 0, median, 1.0)
    excess = jnp.where(median > 0, jnp.log(factor), 0.0)
    clipped = jnp.clip(frequencies, 1e-3, 1 - 1e-3)
    odds = jnp.log(clipped / (1 - clipped)) + jnp.log(num_classes - 1.0)
    evidence = jnp.concatenate([size_anomalies(sizes), excess[None], odds[None]])
    standardized = z_scores(evidence, families, clean_evidence)
    scores = jnp.sqrt(jnp.sum(jnp.maximum(standardized, 0) ** 2, axis=0))
    place = jnp.argmax(scores)
    flagged = (scores[place] >= threshold) & (len(frequencies) >= FEWEST)
    by_family = standardized[: len(families)]
    budgets = jnp.maximum(sizes ** (1 - budget) * jnp.median(sizes, axis=1, keepdims=True) ** budget, _SLACK * sizes)
    largest = jnp.max(by_family[:, place])
    of_suspect = jnp.where(largest > 0, by_family >= share * largest, by_family >= largest) & flagged
    wanted = by_family > 0 if unlearn == "all" else of_suspect & (jnp.arange(sizes.shape[1]) == place)
    detected = Detected(jnp.zeros(num_classes).at[classes].set(scores), classes[place], flagged)
    return Anomalies(detected, classes, evidence, wanted, budgets)
