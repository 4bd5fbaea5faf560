"""Is the backdoor relearned? A repaired network is fine-tuned on a few images, some of them with the trigger.

A repair can be superficial: a few poisoned images restore the attack's success, sooner than in a network that never had
the backdoor (arXiv 2410.09838). So both networks are fine-tuned alike, on clean images and on the same ones partly
poisoned. The test uses the trigger, the attacker's class and test images: it measures a repair, and selects nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.attacks import poisoning
from otbr_jax.data.sources import Images
from otbr_jax.errors import InputError
from otbr_jax.plan import Setup, Shown, Step, needs
from otbr_jax.runs.devices import check_batch_size
from otbr_jax.runs.run import Run
from otbr_jax.runs.session import Session
from otbr_jax.runs.store import Stage
from otbr_jax.settings import field, settings, wrong
from otbr_jax.steps import finetune
from otbr_jax.steps.finetune import FinetuningConfig
from otbr_jax.types import Batch, Variables, unchanged
from otbr_jax.victims import evaluation
from otbr_jax.victims.evaluation import TestSet
from otbr_jax.victims.training import TrainingConfig
from otbr_jax.victims.victims import Victim, attacker_goals, clean_victim

KINDS = ("clean", "poisoned")
"""What a network is fine-tuned on."""


@settings("relearning")
class RelearningConfig:
    """Fine-tuning that tests whether a backdoor is relearned: SGD with momentum in training mode, no augmentation.

    It tests a repaired network, with the trigger and the attacker's class known, and selects nothing.
    """

    images: int = field(default=0, at_least=0, doc="how many training images; 0 for no measurement.")
    poisoned: int = field(
        default=5, at_least=1, doc="how many of them carry the trigger and the attacker's label, in one of two runs."
    )
    epochs: int = field(default=10, at_least=1, doc="passes over the images.")
    batch_size: int = field(
        default=10,
        at_least=1,
        doc="images per step, over all devices together; an epoch's last, incomplete batch is left out.",
    )
    learning_rate: float = field(default=0.01, above=0, doc="of SGD without weight decay, constant.")
    momentum: float = field(default=0.9, at_least=0, below=1, doc="of SGD.")
    measure_every: int = field(
        default=1,
        at_least=1,
        unit="epochs",
        doc="between two measurements of ACC and ASR; the start and the last epoch are always measured.",
    )

    def check(self) -> None:
        """There are at least as many images as are poisoned, and as a batch holds."""
        for name in ("poisoned", "batch_size"):
            if self.images and getattr(self, name) > self.images:
                raise wrong(self, name, f"at most relearning.images ({self.images})")

    def measured_epochs(self) -> list[int]:
        """After how many epochs ACC and ASR are measured, 0 first."""
        return sorted({*range(0, self.epochs, self.measure_every), self.epochs})

    @property
    def tuning(self) -> FinetuningConfig:
        """The same as settings of `finetune`."""
        return FinetuningConfig(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            alpha=0.0,
        )


class Curves(NamedTuple):
    """ACC and ASR on the test set, float32 `[2, measurements]`, rows as `KINDS`; NaN once weights are not finite."""

    acc: jax.Array
    asr: jax.Array


def check_possible(config: RelearningConfig, session: Session) -> None:
    """Raises InputError if it is to be measured with more images than there are, or devices cannot share a batch."""
    if not config.images:
        return
    check_batch_size(config.batch_size, session.mesh, name="relearning.batch_size")
    dataset = session.dataset
    if dataset is not None and dataset.train is not None and (count := len(dataset.train.labels)) < config.images:
        raise InputError(
            f"relearning.images: expected at most {count}, as many as there are training images, found {config.images}"
        )


def measure_relearning(
    run: Run,
    victim: Victim,
    repaired: Variables,
    test: TestSet,
    config: RelearningConfig,
    *,
    recipe: TrainingConfig,
    clean: Images | None = None,
) -> dict[str, Stage]:
    """Fine-tunes a repaired network, and one that never had the backdoor, on a few images, and measures both.

    Args:
      run: that of the victim; the training images of its data are fine-tuned on.
      victim: the victim, whose trigger they carry.
      repaired: the repaired network.
      test: the images that ACC and ASR are measured on.
      config: the settings.
      recipe: how the clean network is trained that it is compared with.
      clean: the defence's clean images; left out as long as there are others.

    Returns:
      The stages `relearning` and `relearning_never` with `Curves`, and `clean`, the network of the latter. Nothing
      without images or a trigger. Only `relearning` for a network that came with its weights.
    """
    dataset = run.session.dataset
    if not config.images or victim.trigger is None or dataset is None or dataset.train is None:
        return {}
    # Without the defence's layers and augmentation, so that defences share the measurements of the clean network.
    plain = dataclasses.replace(run, layers="auto", augment=unchanged, repetition=0)
    inputs = {"batches": _batches(plain, dataset.train, victim, config, clean), "test": test}
    stages = plain.plan((_step("relearning", config),), {"network": repaired, **inputs})
    if run.session.source.variables is None:
        never = victim.stages.get("clean") or clean_victim(plain, recipe)
        stages |= {"clean": never}
        stages |= plain.plan((_step("relearning_never", config),), {"network": never.value["variables"], **inputs})
    return stages


def curves(stages: Mapping[str, Stage], config: RelearningConfig) -> dict[str, Any] | None:
    """The results of `measure_relearning` as plain JSON values, fractions in [0, 1]; None where nothing was measured.

    `epochs`, the epochs of the measurements; `clean` and `poisoned` with `acc` and `asr` of the repaired network, None
    once its weights are not finite; `never`, the same of the network that never had the backdoor, or None.
    """
    if "relearning" not in stages:
        return None
    never = stages.get("relearning_never")
    repaired = {"epochs": config.measured_epochs(), **_plain(stages["relearning"].value)}
    return repaired | {"never": None if never is None else _plain(never.value)}


def _plain(measurements: Curves) -> dict[str, dict[str, list[float | None]]]:
    return {
        kind: {
            name: [round(float(value), 6) if np.isfinite(value) else None for value in values[place]]
            for name, values in measurements._asdict().items()
        }
        for place, kind in enumerate(KINDS)
    }


def draw(labels: np.ndarray, goals: np.ndarray, config: RelearningConfig, *, last: np.ndarray, seed: int) -> np.ndarray:
    """Places `[images]` of random images, equally many of every class; the first `poisoned` of them are to be poisoned.

    Args:
      labels: int `[n]`.
      goals: int `[n]`, the labels that the attacker wants; images that have them already are poisoned last.
      config: how many.
      last: bool `[n]`, images that are drawn last.
      seed: of the random order.
    """
    order = np.random.default_rng((seed, len(labels))).permutation(len(labels))
    order = order[np.argsort(last[order], kind="stable")]
    turn = np.empty(len(labels), int)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        turn[members] = np.arange(len(members))
    # Round by round through the classes, and `last` only then.
    chosen = order[np.lexsort((turn[order], last[order]))][: config.images]
    return chosen[np.argsort(labels[chosen] == goals[chosen], kind="stable")]


def _batches(run: Run, train: Images, victim: Victim, config: RelearningConfig, clean: Images | None) -> Batch:
    """Images `[2, n, h, w, c]` and labels `[2, n]`, clean and partly poisoned."""
    labels = jnp.asarray(train.labels)
    goals = attacker_goals(victim.attack, labels, run.network.num_classes)
    places = draw(train.labels, np.asarray(goals), config, last=_among(train, clean), seed=run.seed)
    images, own = jnp.asarray(train.images[places]), labels[places]
    few = config.poisoned
    assert victim.trigger is not None
    with_trigger = poisoning.apply_trigger(victim.trigger, images[:few], key=run.key("comes_back"))
    poisoned = Batch(images.at[:few].set(with_trigger), own.at[:few].set(goals[places[:few]]))
    return Batch(jnp.stack([images, poisoned.images]), jnp.stack([own, poisoned.labels]))


def _among(train: Images, others: Images | None) -> np.ndarray:
    """Which training images are among the others, bool `[n]`, by their pixels."""
    known = set() if others is None else {image.tobytes() for image in others.images}
    return np.array([image.tobytes() in known for image in train.images], bool)


def _step(name: str, config: RelearningConfig) -> Step:
    """Fine-tunes `network` on each of `batches`, both times from the same weights, and measures it on the way."""

    def run(
        setup: Setup, settings: RelearningConfig, *, key: Any, report: Any, network: Any, batches: Any, test: Any
    ) -> Any:
        del report
        tuning = settings.tuning

        def curve(batch: Batch) -> Curves:
            def one_epoch(_: Any, progress: finetune.Progress) -> finetune.Progress:
                return finetune.next_epoch(setup.network, network, progress, batch, key=key, config=tuning)

            def until(progress: finetune.Progress, epochs: jax.Array) -> tuple[finetune.Progress, Curves]:
                progress = jax.lax.fori_loop(0, epochs, one_epoch, progress)
                now = finetune.variables_of(progress.tuning)
                metrics = evaluation.measure(setup.network, now, test)
                # NaN logits would all be predicted as class 0, often the attacker's.
                finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(now)]))
                return progress, Curves(*(jnp.where(finite, value, jnp.nan) for value in (metrics.acc, metrics.asr)))

            initial = finetune.start(network, tuning, images=settings.images)
            return jax.lax.scan(until, initial, jnp.diff(jnp.array([0, *settings.measured_epochs()])))[1]

        return jax.lax.map(curve, batches)

    return Step(name, run, needs("network", "batches", "test"), config, key="comes_back", shown=Shown("relearning"))
