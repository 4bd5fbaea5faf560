"""FT-SAM: sharpness-aware fine-tuning, which shrinks the weights of backdoor neurons (arXiv 2304.11823)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from otbr_jax.defenses.defense import Defense, Outcome
from otbr_jax.defenses.ft import PUBLISHED, batch_sizes
from otbr_jax.defenses.tuning import changes_step, takes_clean, tuned_outcome, tuning_step
from otbr_jax.plan import Plan, Setup
from otbr_jax.settings import field, settings, wrong
from otbr_jax.steps.finetune import FinetuningConfig
from otbr_jax.steps.objective import Objective, losses, make_objective
from otbr_jax.steps.sharpness import sharpness_optimizer
from otbr_jax.types import Batch, Variables


@settings("sam")
class SAMConfig:
    """Sharpness-aware minimisation and label smoothing; the defaults are the published ones."""

    rho: float = field(default=2.0, above=0, doc="radius of the ascent step, relative to each parameter's size.")
    label_smoothing: float = field(
        default=0.1, at_least=0, below=1, doc="share of a label that is spread over the other classes."
    )


@settings("")
class FTSAMSettings:
    """All settings of the defence `ft_sam`."""

    sam: SAMConfig = field(default=SAMConfig(), doc="adaptive sharpness-aware minimisation.")
    finetuning: FinetuningConfig = field(default=PUBLISHED, doc="how the network is fine-tuned; `alpha` is 0.")

    def check(self) -> None:
        """There is no second ascent step."""
        if self.finetuning.alpha:
            raise wrong(self, "finetuning.alpha", "0, since `sam` takes an ascent step already")


def smoothed(labels: jax.Array, classes: int, *, smoothing: float) -> jax.Array:
    """Labels `[n]` as probabilities `[n, classes]`: `1 - smoothing`, the rest spread over the other classes."""
    other = smoothing / (classes - 1)
    return other + (1 - smoothing - other) * jax.nn.one_hot(labels, classes, dtype=jnp.float32)


def objective(setup: Setup, like: Any, own: SAMConfig) -> Objective:
    """The cross-entropy of smoothed labels in training mode."""

    def loss(variables: Variables, batch: Batch) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        logits, state = setup.network.train(variables, batch.images)
        labels = smoothed(batch.labels, setup.network.num_classes, smoothing=own.label_smoothing)
        return jnp.mean(losses(logits, labels)), (logits, state)

    return make_objective(loss, like, axis_name=setup.axis_name)


def plan(config: FTSAMSettings) -> Plan:
    """finetuned -> changes."""
    return (
        tuning_step(
            "finetuned",
            config.finetuning,
            "sharpness-aware fine-tuning",
            group="finetuning",
            own=config.sam,  # `rho` too, so that another one is another stage
            objective=objective,
            optimizer=partial(sharpness_optimizer, rho=config.sam.rho),
        ),
        changes_step("finetuned"),
    )


def outcome(config: FTSAMSettings, values: Mapping[str, Any]) -> Outcome:
    """The history of fine-tuning."""
    return tuned_outcome(values, done=f"sharpness-aware fine-tuning with rho {config.sam.rho:g}")


DEFENSE = Defense(
    name="ft_sam",
    Config=FTSAMSettings,
    data="clean images",
    layers=lambda config: "auto",
    plan=plan,
    networks=lambda config: ("victim", "finetuned"),
    outcome=outcome,
    given=takes_clean(batch_sizes),
    batch_sizes=batch_sizes,
    source="arXiv 2304.11823",
)
