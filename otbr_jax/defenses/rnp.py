"""RNP: neurons whose masks recovering an unlearned network closes are pruned (ICML 2023, arXiv 2305.14876).

A network that has unlearned clean images keeps its backdoor. Masks on its normalisations are learned so that it
classifies clean images again: masks of neurons that prevent it are closed, those of backdoor neurons among them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from otbr_jax.defenses import gating
from otbr_jax.defenses.defense import Defense, Outcome, rounded
from otbr_jax.defenses.gating import Learning, Masks, ThresholdConfig, ThresholdSweepConfig
from otbr_jax.defenses.otbr import Unlearned
from otbr_jax.defenses.tuning import takes_clean
from otbr_jax.defenses.unlearning import clean_unlearning_step, unlearning_warnings
from otbr_jax.graph.choose import LAYERS
from otbr_jax.numerics.collectives import per_device
from otbr_jax.plan import Plan, Report, Setup, Shown, Step, needs
from otbr_jax.settings import field, settings
from otbr_jax.steps.gates import Gates, PassMetrics, descend, factors_objective, open_gates
from otbr_jax.steps.unlearn import CleanUnlearningConfig, epoch_draws
from otbr_jax.types import Batch, Network, Variables

log = logging.getLogger(__name__)

UNLEARNING = CleanUnlearningConfig(max_epochs=20, batch_size=128, learning_rate=0.01)
"""Unlearning as published, but for a weight decay of 0.0005."""


@settings("recovering")
class RecoveringConfig:
    """How masks are learned; the defaults are the published ones."""

    epochs: int = field(default=20, at_least=1, doc="passes over the clean images.")
    batch_size: int = field(
        default=128,
        at_least=1,
        doc="images per step, over all devices together; an epoch's last, incomplete batch is left out.",
    )
    learning_rate: float = field(default=0.2, above=0, doc="of SGD.")
    momentum: float = field(default=0.9, at_least=0, below=1, doc="of SGD.")
    alpha: float = field(default=0.2, above=0, doc="factor of the loss.")


@settings("rnp")
class RNPConfig:
    """The whole method; the defaults are the published ones."""

    unlearning: CleanUnlearningConfig = field(default=UNLEARNING, doc="step 1, unlearning clean images.")
    recovering: RecoveringConfig = field(default=RecoveringConfig(), doc="step 2, recovering with masks alone.")
    threshold: float = field(
        default=0.7,
        at_least=0,
        below=1,
        doc="step 3, masks of at most this are pruned, unless `selection` chooses another.",
    )
    layers: str = field(
        default="auto", choices=LAYERS, doc="whose neurons the report shows; all normalisations have masks."
    )


@settings("")
class RNPSettings:
    """All settings of the defence `rnp`."""

    rnp: RNPConfig = field(default=RNPConfig(), doc="the published method.")
    selection: ThresholdConfig = field(default=ThresholdConfig(), doc="how the threshold is chosen.")
    sweep: ThresholdSweepConfig = field(
        default=ThresholdSweepConfig(), doc="settings that the report shows beside the chosen one."
    )


def step_fn(
    network: Network, unlearned: Variables, gates: Gates, *, config: RecoveringConfig, axis_name: str | None = None
) -> Callable[[Learning, Batch], tuple[Learning, PassMetrics]]:
    """One step on the masks of the unlearned network, `(Learning, batch) -> (Learning, PassMetrics before the step)`.

    Passes are in training mode, with statistics of the batch; those of the network stay. Args as `anp.step_fn`.
    """
    objective, optimizer = factors_objective(network, unlearned, axis_name=axis_name), gating.sgd(config)

    def step(carry: Learning, batch: Batch) -> tuple[Learning, PassMetrics]:
        passed, grads = objective(carry.masks, batch)
        grads = jax.tree.map(lambda g: config.alpha * g, grads)
        return Learning(*descend(carry.masks, carry.opt_state, grads, gates, optimizer)), passed

    return step


def recover(
    setup: Setup,
    settings: RecoveringConfig,
    *,
    unlearned: Unlearned,
    gates: Gates,
    clean: Batch,
    key: jax.Array,
    report: Report | None,
) -> Masks:
    """Step 2: learns masks with which the unlearned network classifies clean images again."""
    images, labels = clean
    size = per_device(settings.batch_size, setup.axis_name, name="rnp.recovering.batch_size")
    step = step_fn(setup.network, unlearned.variables, gates, config=settings, axis_name=setup.axis_name)
    masks = open_gates(unlearned.variables, gates)

    def one(carry: Learning, drawn: Any) -> tuple[Learning, PassMetrics]:
        places, augment_key = drawn
        batch = Batch(setup.network.prepare(setup.augment(images[places], augment_key)), labels[places])
        return step(carry, batch)

    def epoch(carry: Learning, key: jax.Array) -> tuple[Learning, PassMetrics]:
        carry, history = jax.lax.scan(one, carry, epoch_draws(len(labels), size, key=key))
        if report is not None:
            jax.debug.callback(report)
        return carry, PassMetrics(jnp.mean(history.loss), jnp.mean(history.accuracy))

    start = Learning(masks, gating.sgd(settings).init(masks))
    carry, history = jax.lax.scan(epoch, start, jax.random.split(key, settings.epochs))
    return Masks(carry.masks, history.loss, history.accuracy)


def plan(config: RNPSettings) -> Plan:
    """gates -> unlearned -> masks (-> selected) -> pruned."""
    method = config.rnp
    return (
        gating.gates_step("rnp"),
        clean_unlearning_step(method.unlearning, group="rnp.unlearning"),
        Step(
            "masks",
            recover,
            needs("unlearned", "gates", "clean"),
            method.recovering,
            check=partial(gating.check_masks, name="rnp.recovering"),
            shown=Shown("recovering with masks", total=method.recovering.epochs, unit="epoch"),
        ),
        *gating.pruning_steps(method.threshold, config.selection),
    )


def batch_sizes(config: RNPSettings) -> dict[str, int]:
    """The batches of both steps."""
    return {f"rnp.{stage}.batch_size": getattr(config.rnp, stage).batch_size for stage in ("unlearning", "recovering")}


def outcome(config: RNPSettings, values: Mapping[str, Any]) -> Outcome:
    """How many channels were pruned, and the end of unlearning."""
    info = values["unlearned"].info
    epochs = int(info.epochs)
    accuracy = rounded(info.accuracy[epochs - 1])
    return gating.outcome(
        config.rnp.threshold,
        config.selection,
        values,
        scored="Which neurons recovering masked",
        warnings=unlearning_warnings(info, name="rnp.unlearning"),
        more={"unlearning": {"epochs": epochs, "accuracy": accuracy, "reached_chance": bool(info.reached)}},
    )


DEFENSE = Defense(
    name="rnp",
    Config=RNPSettings,
    data="clean images",
    layers=lambda config: config.rnp.layers,
    plan=plan,
    networks=lambda config: ("victim", "unlearned", "pruned"),
    outcome=outcome,
    check=lambda setup, config: gating.check(setup, name="rnp"),
    given=takes_clean(batch_sizes),
    grid=lambda config: gating.grid(config.sweep),
    batch_sizes=batch_sizes,
    source="arXiv 2305.14876",
)
