"""Choosing a setting with clean images only: cross-validation, and the largest setting within a tolerated accuracy.

Neither test images nor the trigger are used.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from otbr_jax.graph.graph import Layer
from otbr_jax.numerics.collectives import mean
from otbr_jax.settings import field, settings, wrong
from otbr_jax.steps.finetune import FinetuningConfig, finetune
from otbr_jax.steps.prune import reinitialize
from otbr_jax.steps.score import Scores
from otbr_jax.types import Augment, Batch, Network, Variables, unchanged

DRAWS = 8
"""Random augmentations of every held-out image on which a candidate is evaluated."""


@settings("selection")
class SelectionConfig:
    """How n and m are chosen."""

    n: tuple[float, ...] = field(
        default=(),
        at_least=0,
        at_most=1,
        doc="shares of neurons to choose from; empty for `tsbd.n` and `tsbd.m` as they are.",
    )
    m: tuple[float, ...] = field(
        default=(), at_least=0, at_most=1, doc="shares of their weights to choose from; empty for `tsbd.m` as it is."
    )
    held_out: float = field(
        default=0.25, above=0, below=1, doc="share of the clean images on which candidates are evaluated."
    )
    folds: int = field(default=1, at_least=1, doc="number of disjoint parts that are held out in turn.")
    tolerance: float = field(
        default=0.02, at_least=0, at_most=1, doc="how far a candidate's held-out accuracy may lie below the highest."
    )

    def check(self) -> None:
        """Shares of weights come with shares of neurons, and folds do not overlap."""
        if self.m and not self.n:
            raise wrong(self, "n", f"shares of neurons beside selection.m {[*self.m]}", found="none")
        if self.folds * self.held_out > 1 + 1e-9:
            raise wrong(self, "folds", f"1..{int(1 / self.held_out + 1e-9)}")


def candidates(n: Sequence[float], m: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """All pairs (n, m), ordered by the share of the weights that they set to zero, about n m."""
    return tuple(sorted(itertools.product(n, m), key=lambda pair: (round(pair[0] * pair[1], 9), pair)))


class Selection(NamedTuple):
    """The evaluation of all candidates, and the chosen one.

    Attributes:
      accuracy: `[candidates]`, of the held-out clean images of all folds, augmented, in [0, 1].
      loss: `[candidates]`, their mean cross-entropy in nats.
      chosen: index of the chosen candidate.
    """

    accuracy: jax.Array
    loss: jax.Array
    chosen: jax.Array


def choose_within_tolerance(accuracy: jax.Array, *, tolerance: float) -> jax.Array:
    """Index of the last candidate whose accuracy is at most `tolerance` below the highest.

    Candidates are ordered by how much of the network they remove. Of those with nearly the best clean accuracy, the one
    that removes most leaves least of a backdoor. The tolerance is the accuracy that a defender gives up for that.

    Args:
      accuracy: `[candidates]`, in order of what they remove, in [0, 1].
      tolerance: in [0, 1].
    """
    tolerable = accuracy >= jnp.max(accuracy) - tolerance
    return jnp.max(jnp.where(tolerable, jnp.arange(len(accuracy)), 0))


def strongest_harmless(accuracy: jax.Array, *, reference: jax.Array, tolerance: float) -> jax.Array:
    """Index of the last candidate before the first whose accuracy is more than `tolerance` below the reference.

    For thresholds of pruning: each candidate prunes what those before it prune, and more. The first prunes nothing, and
    is chosen where every other one costs too much accuracy.

    Args:
      accuracy: `[candidates]`, in order of what they remove, in [0, 1].
      reference: the accuracy of the suspicious network, a scalar.
      tolerance: in [0, 1].
    """
    harmless = jnp.cumprod((accuracy >= reference - tolerance).astype(jnp.int32))
    return jnp.maximum(jnp.sum(harmless) - 1, 0)


def measure_accuracy(network: Network, variables: Variables, batch: Batch, *, part: int = 200) -> jax.Array:
    """Accuracy on images `[n, h, w, c]`, before `prepare`, in evaluation mode."""
    predictions = jax.lax.map(
        lambda image: jnp.argmax(network.answer(variables, image[None])[0]), batch.images, batch_size=part
    )
    return jnp.mean((predictions == batch.labels).astype(jnp.float32))


def measure_accuracies(
    network: Network,
    build: Callable[[Any], Variables],
    settings: Any,
    batch: Batch,
    *,
    report: Callable[[], None] | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """The accuracy of the network of each setting, `[settings]` in [0, 1].

    One program for all settings, one network in memory at a time.

    Args:
      network: the functions of the network.
      build: `setting -> variables`.
      settings: arrays `[settings, ...]`.
      batch: images `[n, h, w, c]`, before `prepare`, and labels; on a mapped axis each device's own part.
      report: called on the host after each setting.
      axis_name: mapped axis whose devices share the images.
    """

    def one(setting: Any) -> jax.Array:
        accuracy = mean(measure_accuracy(network, build(setting), batch), axis_name)
        if report is not None:
            jax.debug.callback(report)
        return accuracy

    return jax.lax.map(one, settings)


def select_reinitialization(
    network: Network,
    variables: Variables,
    unlearned: Variables,
    scores: Scores,
    layers: Sequence[Layer],
    clean: Batch,
    folds: tuple[jax.Array, jax.Array],
    *,
    counts: jax.Array,
    shares: jax.Array,
    scheme: str,
    key: jax.Array,
    config: FinetuningConfig,
    tolerance: float,
    augment: Augment = unchanged,
    on_candidate: Callable[[], None] | None = None,
) -> Selection:
    """Chooses how many weights are re-initialised: each candidate is fine-tuned on a part, and evaluated on the rest.

    Held-out images are augmented: the suspicious network may have memorised images of its training set, but not all
    their augmentations. Guarantee: touches no data but `clean`. One program serves all candidates, with one network in
    memory at a time.

    Args:
      network: the functions of the network.
      variables: the suspicious network's variables.
      unlearned: the same after clean unlearning.
      scores: neuron weight changes.
      layers: the layers of `scores`.
      clean: clean images `[n, h, w, c]` and labels `[n]`.
      folds: indices to fit int `[folds, fitted]` and to hold out int `[folds, held]`.
      counts: int `[candidates]`, numbers of neurons; candidates are ordered by what they remove.
      shares: `[candidates]`, the paper's m.
      scheme: see `reinitialize`.
      key: typed PRNG key of the fine-tunings.
      config: how candidates are fine-tuned.
      tolerance: see `choose_within_tolerance`.
      augment: `(images, key) -> images`, before the network's `prepare`.
      on_candidate: called on the host after each candidate of each fold; None traces no callback.

    Raises:
      InputError: if a fold has fewer images than one batch.
    """

    def evaluate(
        fold: tuple[jax.Array, jax.Array], candidate: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        (fit, held), (count, share) = fold, candidate
        start, _ = reinitialize(variables, unlearned, scores, layers, count=count, share=share, scheme=scheme)
        part = Batch(clean.images[fit], clean.labels[fit])
        tuned, _ = finetune(network, start, part, key=key, config=config, augment=augment)
        images, labels = clean.images[held], clean.labels[held]

        def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = network.answer(tuned, augment(images, key)).astype(jnp.float32)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return jnp.mean(jnp.argmax(logits, axis=-1) == labels), jnp.mean(losses)

        # The same augmentations for every candidate.
        accuracy, loss = jax.lax.map(draw, jax.random.split(jax.random.fold_in(key, config.epochs), DRAWS))
        if on_candidate is not None:
            jax.debug.callback(on_candidate)
        return jnp.mean(accuracy), jnp.mean(loss)

    def one_fold(fold: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return jax.lax.map(lambda candidate: evaluate(fold, candidate), (counts, shares))

    accuracy, loss = (jnp.mean(values, axis=0) for values in jax.lax.map(one_fold, folds))
    return Selection(accuracy, loss, choose_within_tolerance(accuracy, tolerance=tolerance))
