"""SAU: shared adversarial examples of the suspicious and the repaired network are unlearned.

An image with the trigger is an adversarial example of both networks with the same prediction. Unlearning such shared
examples unlearns the backdoor (arXiv 2307.10562).
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
"""Initial perturbations: every pixel brighter by the bound, unchanged, or darker by it."""


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
    bound: float = field(default=0.2, above=0, doc="largest perturbation of a pixel, images in [0, 1].")
    step: float = field(default=0.2, above=0, doc="size of an ascent step for each pixel.")
    steps: int = field(default=5, at_least=0, doc="ascent steps on the perturbations.")
    start: str = field(default="max", choices=STARTS, doc="initial perturbations.")
    beta_1: float = field(default=0.01, at_least=0, doc="weight of each network's cross-entropy, in the ascent.")
    beta_2: float = field(default=1.0, at_least=0, doc="weight of both networks' agreement, in the ascent.")
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
    predictions: tuple[jax.Array, jax.Array],
    *,
    config: SAUConfig,
) -> jax.Array:
    """The loss that perturbations minimise, a scalar.

    Images that mislead a network no longer count in its cross-entropy. Images that mislead both to the same class no
    longer count in the agreement, the Jensen-Shannon divergence of both networks' probabilities.

    Args:
      logits: of the repaired network on perturbed images, `[n, classes]`.
      suspicious: logits of the suspicious network.
      labels: int `[n]`.
      predictions: of both networks for the unperturbed images, int `[n]` each.
      config: the weights.
    """
    classes = (jnp.argmax(logits, axis=-1), jnp.argmax(suspicious, axis=-1))
    fooled = [now != before for now, before in zip(classes, predictions, strict=True)]
    adversarial = sum(
        jnp.sum(jnp.where(done, 0.0, losses(own, labels)))
        for done, own in zip(fooled, (logits, suspicious), strict=True)
    )
    shared = fooled[0] & fooled[1] & (classes[0] == classes[1])
    ours, theirs = (jnp.maximum(jax.nn.softmax(own.astype(jnp.float32)), 1e-8) for own in (logits, suspicious))
    between = jnp.log((ours + theirs) / 2)
    divergence = (ours * (jnp.log(ours) - between) + theirs * (jnp.log(theirs) - between)) / 2
    apart = jnp.sum(jnp.where(shared, 0.0, jnp.sum(divergence, axis=-1)))
    return (config.beta_2 * apart - config.beta_1 * adversarial / 2) / len(labels)


def perturb(
    network: Network, variables: Variables, suspicious: Variables, batch: Batch, *, config: SAUConfig
) -> jax.Array:
    """Shared adversarial examples `[n, h, w, c]`: images, each perturbed within the bound, and not clipped to [0, 1].

    Args:
      network: the functions of both networks.
      variables: those of the repaired network.
      suspicious: the suspicious network's variables.
      batch: images in [0, 1], and their labels.
      config: bound, steps, start and weights.
    """
    predictions = (
        jnp.argmax(network.answer(variables, batch.images), axis=-1),
        jnp.argmax(network.answer(suspicious, batch.images), axis=-1),
    )

    def loss(change: jax.Array, *_: None) -> jax.Array:
        images = batch.images + change
        both = network.answer(variables, images), network.answer(suspicious, images)
        return attack_loss(*both, batch.labels, predictions, config=config)

    sign = {"max": 1.0, "zero": 0.0, "min": -1.0}[config.start]
    perturbation, _ = descend(
        loss,
        jnp.full(batch.images.shape, sign * config.bound, jnp.float32),
        optimizer=optax.chain(optax.scale_by_sign(), optax.scale(-config.step)),
        steps=config.steps,
        project=lambda change: jnp.clip(change, -config.bound, config.bound),
    )
    return batch.images + perturbation.point


def shared_risk(logits: jax.Array, suspicious: jax.Array, labels: jax.Array, plain: jax.Array) -> jax.Array:
    """How likely the network predicts the class to which the suspicious one is misled, as `-log(1 - p)`, a scalar.

    Args:
      logits: of the repaired network on perturbed images, `[n, classes]`.
      suspicious: logits of the suspicious network.
      labels: int `[n]`.
      plain: predictions of the suspicious network for the unperturbed images, int `[n]`.

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
    """Perturbs a batch of images in [0, 1], and evaluates the loss of SAU on it; in evaluation mode."""
    network = setup.network

    def loss(variables: Any, batch: Batch) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        images, perturbed = batch.images
        count = len(images)
        logits = network.answer(variables, jnp.concatenate([images, perturbed]))
        clean, adversarial = logits[:count], logits[count:]
        plain = jnp.argmax(network.answer(victim, images), axis=-1)
        value = (
            own.lambda_1 * jnp.mean(losses(clean, batch.labels))
            + own.lambda_2 * jnp.mean(losses(adversarial, batch.labels))
            + own.lambda_3 * shared_risk(adversarial, network.answer(victim, perturbed), batch.labels, plain)
        )
        return value, (clean, {name: tree for name, tree in variables.items() if name != "params"})

    evaluate = make_objective(loss, like, axis_name=setup.axis_name)

    def perturb_and_evaluate(params: Any, state: Any, batch: Batch) -> tuple[Evaluation, Any]:
        own_params = jax.tree.map(lambda p, own: p.astype(own.dtype), params, like)
        perturbed = perturb(network, {"params": own_params, **state}, victim, batch, config=own)
        return evaluate(params, state, Batch(jnp.stack([batch.images, perturbed]), batch.labels))

    return perturb_and_evaluate


def adam(config: FinetuningConfig, steps: int) -> optax.GradientTransformationExtraArgs:
    """Adam at a constant rate."""
    del steps
    return optax.with_extra_args_support(optax.adam(config.learning_rate))


def on_raw_images(network: Network) -> Network:
    """The network that takes batches of images in [0, 1], and whose running statistics stay."""
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
            adapt=on_raw_images,
        ),
        changes_step("unlearned"),
    )


def batch_sizes(config: SAUSettings) -> dict[str, int]:
    """The batches that devices share."""
    return {"sau.batch_size": config.sau.batch_size}


def outcome(config: SAUSettings, values: Mapping[str, Any]) -> Outcome:
    """The history of the rounds."""
    del config
    done = "shared adversarial examples unlearned"
    return tuned_outcome(values, done=done, tuned="unlearned", scored="Which neurons unlearning changed")


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
