"""ANP: neurons that are sensitive to adversarial perturbations of weights are pruned (arXiv 2110.14430).

Backdoor neurons are far more sensitive to such perturbations than others. Masks on the scales of normalisations are
learned so that the network classifies clean images well, with and without perturbed scales and biases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from otbr_jax.defenses import gating
from otbr_jax.defenses.defense import Defense, Outcome
from otbr_jax.defenses.gating import Learning, Masks, ThresholdConfig, ThresholdSweepConfig
from otbr_jax.graph.choose import LAYERS
from otbr_jax.numerics.collectives import per_device
from otbr_jax.plan import Plan, Report, Setup, Shown, Step, needs
from otbr_jax.settings import field, settings
from otbr_jax.steps.gates import Factors, Gates, PassMetrics, descend, factors_objective, open_gates
from otbr_jax.types import Batch, Network, Variables


@settings("learning")
class AdversarialConfig:
    """How masks are learned; the defaults are the published ones."""

    steps: int = field(default=2000, at_least=1, doc="steps of SGD on the masks.")
    batch_size: int = field(
        default=128, at_least=1, doc="images per step, over all devices together, drawn with replacement."
    )
    learning_rate: float = field(default=0.2, above=0, doc="of SGD.")
    momentum: float = field(default=0.9, at_least=0, below=1, doc="of SGD.")
    eps: float = field(
        default=0.4, at_least=0, doc="largest perturbation of scales and biases, as a share of themselves."
    )
    ascent: int = field(default=1, at_least=0, doc="ascent steps of `eps / ascent` each, after a random start.")
    clip: bool = field(
        default=False,
        doc="whether perturbations are clipped to [-eps, eps] after each ascent step: in the paper, not in its code.",
    )
    alpha: float = field(
        default=0.2, at_least=0, at_most=1, doc="weight of the loss without perturbation; the other one has the rest."
    )


@settings("anp")
class ANPConfig:
    """The whole method; the defaults are the published ones."""

    learning: AdversarialConfig = field(default=AdversarialConfig(), doc="how masks are learned.")
    threshold: float = field(
        default=0.2, at_least=0, below=1, doc="masks of at most this are pruned, unless `selection` chooses another."
    )
    layers: str = field(
        default="auto", choices=LAYERS, doc="whose neurons the report shows; all normalisations have masks."
    )


@settings("")
class ANPSettings:
    """All settings of the defence `anp`."""

    anp: ANPConfig = field(default=ANPConfig(), doc="the published method.")
    selection: ThresholdConfig = field(default=ThresholdConfig(), doc="how the threshold is chosen.")
    sweep: ThresholdSweepConfig = field(
        default=ThresholdSweepConfig(), doc="settings that the report shows beside the chosen one."
    )


def step_fn(
    network: Network, variables: Variables, gates: Gates, *, config: AdversarialConfig, axis_name: str | None = None
) -> Callable[[Learning, Factors, Batch], tuple[Learning, PassMetrics]]:
    """One step on the masks, `(Learning, initial perturbation, batch) -> (Learning, PassMetrics without perturbation)`.

    A scale is multiplied with `mask + perturbation`, a bias with `1 + perturbation`. A bias's mask stays 1, so that one
    formula covers both. All passes are in training mode, with statistics of the batch; those of the network stay.

    Args:
      network: the functions of the network.
      variables: the suspicious network's variables.
      gates: which parameters are scales; the other ones of the same layers are biases.
      config: the settings.
      axis_name: see `objective.cross_entropy`.
    """
    objective, optimizer = factors_objective(network, variables, axis_name=axis_name), gating.sgd(config)

    def perturbed(masks: Factors, noise: Factors) -> Factors:
        return jax.tree.map(jnp.add, masks, noise)

    def step(carry: Learning, noise: Factors, batch: Batch) -> tuple[Learning, PassMetrics]:
        for _ in range(config.ascent):
            _, ascent = objective(perturbed(carry.masks, noise), batch)
            noise = jax.tree.map(lambda n, g: n + config.eps / config.ascent * jnp.sign(g), noise, ascent)
            if config.clip:
                noise = jax.tree.map(lambda n: jnp.clip(n, -config.eps, config.eps), noise)
        passed, natural = objective(carry.masks, batch)
        _, robust = objective(perturbed(carry.masks, noise), batch)
        grads = jax.tree.map(lambda g, r: config.alpha * g + (1 - config.alpha) * r, natural, robust)
        return Learning(*descend(carry.masks, carry.opt_state, grads, gates, optimizer)), passed

    return step


def initial_noise(masks: Factors, eps: float, *, key: jax.Array) -> dict[str, jax.Array]:
    """Initial perturbations, uniform in [-eps, eps]."""
    keys = jax.random.split(key, len(masks))
    return {
        name: jax.random.uniform(own, mask.shape, minval=-eps, maxval=eps)
        for own, (name, mask) in zip(keys, sorted(masks.items()), strict=True)
    }


def learn(
    setup: Setup,
    settings: AdversarialConfig,
    *,
    victim: Variables,
    gates: Gates,
    clean: Batch,
    key: jax.Array,
    report: Report | None,
) -> Masks:
    """Learns masks in one program."""
    images, labels = clean
    size = per_device(settings.batch_size, setup.axis_name, name="anp.learning.batch_size")
    step = step_fn(setup.network, victim, gates, config=settings, axis_name=setup.axis_name)
    masks = open_gates(victim, gates)

    def one(carry: Learning, key: jax.Array) -> tuple[Learning, PassMetrics]:
        draw_key, vary_key, noise_key = jax.random.split(key, 3)
        drawn = jax.random.randint(draw_key, (size,), 0, len(labels))
        batch = Batch(setup.network.prepare(setup.augment(images[drawn], vary_key)), labels[drawn])
        carry, passed = step(carry, initial_noise(carry.masks, settings.eps, key=noise_key), batch)
        if report is not None:
            jax.debug.callback(report)
        return carry, passed

    start = Learning(masks, gating.sgd(settings).init(masks))
    carry, history = jax.lax.scan(one, start, jax.random.split(key, settings.steps))
    return Masks(carry.masks, history.loss, history.accuracy)


def plan(config: ANPSettings) -> Plan:
    """gates -> masks (-> selected) -> pruned."""
    learning = config.anp.learning
    return (
        gating.gates_step("anp"),
        Step(
            "masks",
            learn,
            needs("victim", "gates", "clean"),
            learning,
            check=partial(gating.check_masks, name="anp.learning"),
            shown=Shown("learning masks", total=learning.steps),
        ),
        *gating.pruning_steps(config.anp.threshold, config.selection),
    )


def outcome(config: ANPSettings, values: Mapping[str, Any]) -> Outcome:
    """How many channels were pruned."""
    return gating.outcome(
        config.anp.threshold, config.selection, values, scored="Which neurons are sensitive to perturbations"
    )


DEFENSE = Defense(
    name="anp",
    Config=ANPSettings,
    data="clean images",
    layers=lambda config: config.anp.layers,
    plan=plan,
    networks=lambda config: ("victim", "pruned"),
    outcome=outcome,
    check=lambda setup, config: gating.check(setup, name="anp"),
    grid=lambda config: gating.grid(config.sweep),
    batch_sizes=lambda config: {"anp.learning.batch_size": config.anp.learning.batch_size},
    source="arXiv 2110.14430",
)
