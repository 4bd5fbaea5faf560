"""Fine-tuning with clean images and nothing else: the baseline of all defences that use clean images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from otbr_jax.defenses.defense import Defense, Outcome
from otbr_jax.defenses.tuning import changes_step, takes_clean, tuned_outcome, tuning_step
from otbr_jax.plan import Plan
from otbr_jax.settings import field, settings
from otbr_jax.steps.finetune import FinetuningConfig

PUBLISHED = FinetuningConfig(epochs=100, weight_decay=5e-4, alpha=0.0, schedule="cosine")
"""How BackdoorBench fine-tunes a PreAct-ResNet18 with 5 % of CIFAR-10, whatever the defence."""


@settings("")
class FTSettings:
    """All settings of the defence `ft`."""

    finetuning: FinetuningConfig = field(default=PUBLISHED, doc="how the network is fine-tuned.")


def plan(config: FTSettings) -> Plan:
    """finetuned -> changes."""
    return (
        tuning_step("finetuned", config.finetuning, "fine-tuning", group="finetuning"),
        changes_step("finetuned"),
    )


def batch_sizes(config: Any) -> Mapping[str, int]:
    """The batches of `finetuning`."""
    return {"finetuning.batch_size": config.finetuning.batch_size}


def outcome(config: FTSettings, values: Mapping[str, Any]) -> Outcome:
    """The history of fine-tuning."""
    del config
    return tuned_outcome(values, done="fine-tuned")


DEFENSE = Defense(
    name="ft",
    Config=FTSettings,
    data="clean images",
    layers=lambda config: "auto",
    plan=plan,
    networks=lambda config: ("victim", "finetuned"),
    outcome=outcome,
    given=takes_clean(batch_sizes),
    batch_sizes=batch_sizes,
    source="BackdoorBench",
)
