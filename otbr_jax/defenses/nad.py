"""NAD: attention distillation from a fine-tuned copy of the suspicious network (ICLR 2021, arXiv 2101.05930)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.defenses.defense import Defense, Outcome
from otbr_jax.defenses.tuning import Tuned, changes_step, plain_history, takes_clean, tuned_outcome, tuning_step
from otbr_jax.errors import InputError
from otbr_jax.graph.graph import Layer
from otbr_jax.graph.taps import tap_inputs
from otbr_jax.plan import Plan, Setup
from otbr_jax.settings import field, settings, wrong
from otbr_jax.steps.finetune import FinetuningConfig
from otbr_jax.steps.objective import Objective, losses, make_objective
from otbr_jax.types import Batch, Network, Variables

_LEAST = 1e-6  # added to the norm of an attention map, as published


@settings("nad")
class NADConfig:
    """The whole method; the defaults are those of BackdoorBench."""

    teacher: FinetuningConfig = field(
        default=FinetuningConfig(epochs=10, weight_decay=1e-4, alpha=0.0),
        doc="step 1, how a copy of the suspicious network is fine-tuned: the teacher.",
    )
    finetuning: FinetuningConfig = field(
        default=FinetuningConfig(epochs=100, weight_decay=1e-4, alpha=0.0, schedule="cosine"),
        doc="step 2, how the suspicious network is fine-tuned, with the teacher's attention.",
    )
    betas: tuple[float, ...] = field(
        default=(500.0, 1000.0, 1000.0),
        at_least=0,
        doc="weights of the attention losses of the last layers, one for each size of inputs, in execution order.",
    )
    power: float = field(
        default=2.0, at_least=1, doc="the paper's p, the power of activations that attention maps sum."
    )

    def check(self) -> None:
        """Without attention it is plain fine-tuning."""
        if not self.betas:
            raise wrong(self, "betas", "at least one weight", found="none")


@settings("")
class NADSettings:
    """All settings of the defence `nad`."""

    nad: NADConfig = field(default=NADConfig(), doc="the published method.")


class AttentionSettings(NamedTuple):
    """The settings of the objective: see `NADConfig`."""

    betas: tuple[float, ...]
    power: float


def attention(features: jax.Array, *, power: float) -> jax.Array:
    """Attention maps: `|F|^power` summed over channels, of unit L2 norm; `[n, ..., c] -> [n, positions]`."""
    strength = jnp.sum(jnp.abs(features.astype(jnp.float32)) ** power, axis=-1).reshape(len(features), -1)
    total = jnp.sum(strength**2, axis=1, keepdims=True)
    norm = jnp.where(total > 0, jnp.sqrt(jnp.where(total > 0, total, 1.0)), 0.0)
    return strength / (norm + _LEAST)


def attention_loss(student: jax.Array, teacher: jax.Array, *, power: float) -> jax.Array:
    """The mean squared difference of two layers' attention maps, over images and positions."""
    return jnp.mean((attention(student, power=power) - attention(teacher, power=power)) ** 2)


def attention_layers(
    network: Network, layers: Sequence[Layer], variables: Variables, images: jax.Array, *, count: int
) -> list[str]:
    """The layers whose inputs are compared, by name: the last layer of each of the last `count` sizes of inputs.

    The input of a stage's first layer has the size of the stage before, so that these are the outputs of stages.

    Args:
      network: the functions of the network.
      layers: in execution order; those whose input is the image, or has one position, are left out.
      variables: the network's.
      images: `[n, h, w, c]`, as the network takes them; only the shape is used.
      count: of sizes.

    Raises:
      InputError: if there is no such layer.
    """
    names = [layer.name for layer in layers if layer.fed_by]
    _, inputs = jax.eval_shape(tap_inputs(network.apply, names), variables, images)
    last: dict[tuple[int, ...], str] = {}
    for name in names:
        size = inputs[name].shape[1:-1]
        if math.prod(size) > 1:
            last.pop(size, None)  # to the end
            last[size] = name
    if not last:
        raise InputError(
            "defense: expected a network with a layer that sees several positions, whose attention nad compares, "
            "found none; defences that need none are disarm, tsbd and ft"
        )
    return [*last.values()][-count:]


def objective(setup: Setup, like: Any, own: AttentionSettings, *, teacher: Tuned) -> Objective:
    """The cross-entropy in training mode, plus the distance from the teacher's attention in evaluation mode."""
    network = setup.network

    def loss(variables: Variables, batch: Batch) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        names: list[str] = []
        if own.betas:
            names = attention_layers(network, setup.layers, teacher.variables, batch.images, count=len(own.betas))
        (logits, state), ours = tap_inputs(network.train, names)(variables, batch.images)
        _, theirs = tap_inputs(network.apply, names)(teacher.variables, batch.images)
        distances = [
            beta * attention_loss(ours[name], theirs[name], power=own.power)
            for name, beta in zip(names, own.betas[len(own.betas) - len(names) :], strict=True)
        ]
        return jnp.mean(losses(logits, batch.labels)) + sum(distances, jnp.float32(0)), (logits, state)

    return make_objective(loss, like, axis_name=setup.axis_name)


def plan(config: NADSettings) -> Plan:
    """teacher -> finetuned -> changes."""
    method = config.nad
    return (
        tuning_step("teacher", method.teacher, "fine-tuning the teacher", group="nad.teacher"),
        tuning_step(
            "finetuned",
            method.finetuning,
            "attention distillation",
            group="nad.finetuning",
            more=("teacher",),
            own=AttentionSettings(method.betas, method.power),
            objective=objective,
        ),
        changes_step("finetuned"),
    )


def batch_sizes(config: NADSettings) -> Mapping[str, int]:
    """The batches of the teacher and of its student."""
    return {f"nad.{stage}.batch_size": getattr(config.nad, stage).batch_size for stage in ("teacher", "finetuning")}


def outcome(config: NADSettings, values: Mapping[str, Any]) -> Outcome:
    """The histories of the teacher and of its student."""
    del config
    teacher, history = plain_history(values["teacher"]), plain_history(values["finetuned"])
    return tuned_outcome(
        values,
        done=f"attention distilled from a teacher of {len(teacher['loss'])} epochs",
        more={"teacher": teacher, "finetuning": history},
    )


DEFENSE = Defense(
    name="nad",
    Config=NADSettings,
    data="clean images",
    layers=lambda config: "auto",
    plan=plan,
    networks=lambda config: ("victim", "teacher", "finetuned"),
    outcome=outcome,
    given=takes_clean(batch_sizes),
    batch_sizes=batch_sizes,
    source="arXiv 2101.05930",
)
