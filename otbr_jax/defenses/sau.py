"""SAU: adversarial examples that mislead the suspicious network and the repaired one alike are unlearned.

An image that carries the trigger is an adversarial example of both networks, with the same answer; unlearning those
examples alone unlearns the backdoor (arXiv 2307.10562).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from otbr_jax.defenses.defense import Defense, Outcome
from otbr_jax.defenses.tuning import changes_step, takes_clean, tuned_outcome, tuning_step
from otbr_jax.graph.choose import LAYERS
from otbr_jax.inversion import descend
from otbr_jax.plan import Plan, Setup
from otbr_jax.settings import field, settings
from otbr_jax.steps.finetune import FinetuningConfig
from otbr_jax.steps.objective import Evaluation, Objective, losses, make_objective
from otbr_jax.types import Batch, Network, Variables, in_unit_range

STARTS = ("max", "zero", "min")
"""Where a perturbation begins: every pixel as bright as the bound allows, as it is, or as dark."""


@settings("sau")
class SAUConfig:
    """The whole method; the defaults are the published ones."""

    rounds: int = field(default=100, at_least=1, doc="passes over the clean images.")
    batch_size: int = field(
        default=256,
        at_least=1,
        doc="images per step, over all devices together; a round's last, incomplete batch is left out.",
    )
    learning_rate: float = field(default=1e-4, above=0, doc="of Adam.")
    bound: float = field(default=0.2, above=0, doc="of perturbations, for each pixel, images in [0, 1].")
    step: float = field(default=0.2, above=0, doc="of the search for perturbations, for each pixel.")
    steps: int = field(default=5, at_least=0, doc="of the search for perturbations.")
    start: str = field(default="max", choices=STARTS, doc="where it begins.")
    beta_1: float = field(default=0.01, at_least=0, doc="weight of misleading each network, in the search.")
    beta_2: float = field(default=1.0, at_least=0, doc="weight of both networks' agreement, in the search.")
    lambda_1: float = field(default=1.0, at_least=0, doc="weight of the cross-entropy of clean images.")
    lambda_2: float = field(default=0.0, at_least=0, doc="weight of the cross-entropy of perturbed images.")
    lambda_3: float = field(default=1.0, at_least=0, doc="weight of the shared adversarial risk.")
    layers: str = field(default="auto", choices=LAYERS, doc="whose neurons the report shows; see `choose_layers`.")

    @property
    def finetuning(self) -> FinetuningConfig:
        """The rounds as epochs of fine-tuning."""
        return FinetuningConfig(
            epochs=self.rounds, batch_size=self.batch_size, learning_rate=self.learning_rate, momentum=0.0, alpha=0.0
        )


@settings("")
class SAUSettings:
    """All settings of the defence `sau`."""

    sau: SAUConfig = field(default=SAUConfig(), doc="the published method.")


def attack_loss(
    logits: jax.Array,
    suspicious: jax.Array,
    labels: jax.Array,
    answers: tuple[jax.Array, jax.Array],
    *,
    config: SAUConfig,
) -> jax.Array:
    """What the search for perturbations descends, a scalar.

    Images that mislead a network no longer count as to that network; images that mislead both to the same answer no
    longer count as to agreement, the Jensen-Shannon divergence of both networks' probabilities.

    Args:
      logits: of the network that is repaired, of perturbed images, `[n, classes]`.
      suspicious: those of the suspicious network.
      labels: int `[n]`.
      answers: what both networks answer the images as they were, int `[n]` each.
      config: the weights.
    """
    found = (jnp.argmax(logits, axis=-1), jnp.argmax(suspicious, axis=-1))
    fooled = [now != before for now, before in zip(found, answers, strict=True)]
    adversarial = sum(
        jnp.sum(jnp.where(done, 0.0, losses(own, labels)))
        for done, own in zip(fooled, (logits, suspicious), strict=True)
    )
    shared = fooled[0] & fooled[1] & (found[0] == found[1])
    ours, theirs = (jnp.maximum(jax.nn.softmax(own.astype(jnp.float32)), 1e-8) for own in (logits, suspicious))
    between = jnp.log((ours + theirs) / 2)
    divergence = (ours * (jnp.log(ours) - between) + theirs * (jnp.log(theirs) - between)) / 2
    apart = jnp.sum(jnp.where(shared, 0.0, jnp.sum(divergence, axis=-1)))
    return (config.beta_2 * apart - config.beta_1 * adversarial / 2) / len(labels)


def perturb(
    network: Network, variables: Variables, suspicious: Variables, batch: Batch, *, config: SAUConfig
) -> jax.Array:
    """Images `[n, h, w, c]` in [0, 1], each moved by at most the bound so that both networks err alike; not clipped.

    Args:
      network: the functions of both networks.
      variables: the network that is repaired.
      suspicious: the suspicious network's variables.
      batch: images in [0, 1], and their labels.
      config: bound, steps, start and weights.
    """
    answers = (
        jnp.argmax(network.answer(variables, batch.images), axis=-1),
        jnp.argmax(network.answer(suspicious, batch.images), axis=-1),
    )

    def loss(change: jax.Array, *_: None) -> jax.Array:
        images = batch.images + change
        both = network.answer(variables, images), network.answer(suspicious, images)
        return attack_loss(*both, batch.labels, answers, config=config)

    sign = {"max": 1.0, "zero": 0.0, "min": -1.0}[config.start]
    found, _ = descend(
        loss,
        jnp.full(batch.images.shape, sign * config.bound, jnp.float32),
        optimizer=optax.chain(optax.scale_by_sign(), optax.scale(-config.step)),
        steps=config.steps,
        project=lambda change: jnp.clip(change, -config.bound, config.bound),
    )
    return batch.images + found.point


def shared_risk(logits: jax.Array, suspicious: jax.Array, labels: jax.Array, plain: jax.Array) -> jax.Array:
    """How likely the network answers as the suspicious one does where that one errs, as `-log(1 - p)`, a scalar.

    Args:
      logits: of the network that is repaired, of perturbed images, `[n, classes]`.
      suspicious: those of the suspicious network.
      labels: int `[n]`.
      plain: what the suspicious network answers the images as they were, int `[n]`.

    Returns:
      The sum over images whose perturbation misleads the suspicious network, over the number of all images.
    """
    wrong = jnp.argmax(suspicious, axis=-1)
    misled = (wrong != labels) & (wrong != plain)
    probabilities = jax.nn.softmax(logits.astype(jnp.float32))
    same = jax.nn.one_hot(wrong, logits.shape[-1])
    theirs = jnp.sum(probabilities * same, axis=-1)
    others = jnp.sum(probabilities * (1 - same), axis=-1)
    # One number twice, as published: of a probability near 1 or near 0, one of the two is exact.
    risk = jnp.log(1e-6 + jnp.minimum(others, 0.999)) + jnp.log(1 + 1e-6 - jnp.maximum(theirs, 0.001))
    return -jnp.sum(jnp.where(misled, risk, 0.0)) / 2 / len(labels)


def objective(setup: Setup, like: Any, own: SAUConfig, *, victim: Variables) -> Objective:
    """Inverts perturbations of a batch, images in [0, 1], and descends what SAU descends; in evaluation mode."""
    network = setup.network

    def loss(variables: Any, batch: Batch) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        images, perturbed = batch.images
        count = len(images)
        logits = network.answer(variables, jnp.concatenate([images, perturbed]))
        clean, moved = logits[:count], logits[count:]
        plain = jnp.argmax(network.answer(victim, images), axis=-1)
        value = (
            own.lambda_1 * jnp.mean(losses(clean, batch.labels))
            + own.lambda_2 * jnp.mean(losses(moved, batch.labels))
            + own.lambda_3 * shared_risk(moved, network.answer(victim, perturbed), batch.labels, plain)
        )
        return value, (clean, {name: tree for name, tree in variables.items() if name != "params"})

    descended = make_objective(loss, like, axis_name=setup.axis_name)

    def found(params: Any, state: Any, batch: Batch) -> tuple[Evaluation, Any]:
        rounded = jax.tree.map(lambda p, own: p.astype(own.dtype), params, like)
        perturbed = perturb(network, {"params": rounded, **state}, victim, batch, config=own)
        return descended(params, state, Batch(jnp.stack([batch.images, perturbed]), batch.labels))

    return found


def adam(config: FinetuningConfig, steps: int) -> optax.GradientTransformationExtraArgs:
    """Adam at a constant rate."""
    del steps
    return optax.with_extra_args_support(optax.adam(config.learning_rate))


def as_pictures(network: Network) -> Network:
    """The network whose batches stay images in [0, 1], and whose statistics stay as they are."""
    return dataclasses.replace(network, apply_train=None, prepare=in_unit_range)


def plan(config: SAUSettings) -> Plan:
    """unlearned -> changes."""
    return (
        tuning_step(
            "unlearned",
            config.sau.finetuning,
            "unlearning shared adversarial examples",
            group="sau",
            more=("victim",),
            own=config.sau,
            objective=objective,
            optimizer=adam,
            seen=as_pictures,
        ),
        changes_step("unlearned"),
    )


def batch_sizes(config: SAUSettings) -> dict[str, int]:
    """The batches that devices share."""
    return {"sau.batch_size": config.sau.batch_size}


def outcome(config: SAUSettings, values: Mapping[str, Any]) -> Outcome:
    """How the rounds went."""
    del config
    done = "shared adversarial examples unlearned"
    return tuned_outcome(values, done=done, tuned="unlearned", scored="Which neurons unlearning moved")


DEFENSE = Defense(
    name="sau",
    Config=SAUSettings,
    data="clean images",
    layers=lambda config: config.sau.layers,
    plan=plan,
    networks=lambda config: ("victim", "unlearned"),
    outcome=outcome,
    given=takes_clean(batch_sizes),
    batch_sizes=batch_sizes,
    source="arXiv 2307.10562",
)
