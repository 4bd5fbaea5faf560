"""BCU: some weights are reinitialised, more in later layers, and the suspicious network is distilled into the result.

The published method (arXiv 2211.12044) takes unlabelled images. Here procedural images take their place, so that it
needs no data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.defenses.defense import Defense, Outcome, count_neurons
from otbr_jax.defenses.tuning import changes_step, tuned_outcome, tuning_step
from otbr_jax.detectors.trigger_size import PROCEDURAL, ImagesConfig, make_procedural
from otbr_jax.errors import InputError
from otbr_jax.graph.choose import LAYERS
from otbr_jax.graph.graph import Layer
from otbr_jax.plan import Plan, Report, Setup, Shown, Step, needs
from otbr_jax.settings import field, settings, wrong
from otbr_jax.steps.finetune import FinetuningConfig
from otbr_jax.steps.objective import Objective, make_objective
from otbr_jax.types import Batch, Network, Variables, named_leaves, replace_leaves

STATISTICS = ("kept", "moved")


@settings("bcu")
class BCUConfig:
    """The whole method; the defaults are the published ones, but for what takes the place of images."""

    shares: tuple[float, ...] = field(
        default=(0.01, 0.01, 0.03, 0.09, 0.27, 0.1),
        at_least=0,
        at_most=1,
        doc="shares of weights that are reinitialised: of the first layer, of equal parts of the hidden layers from "
        "front to back, and of output layers.",
    )
    warmth: float = field(
        default=3.0, at_least=0, doc="by how much the temperature of distillation rises above 1, in equal steps."
    )
    statistics: str = field(
        default="kept",
        choices=STATISTICS,
        doc="running statistics in distillation: `moved`, updated in training mode, as published for real images; or "
        "`kept`, in evaluation mode, since those of procedural images differ.",
    )
    finetuning: FinetuningConfig = field(
        default=FinetuningConfig(epochs=100, weight_decay=5e-4, alpha=0.0, schedule="cosine"),
        doc="how the network is distilled.",
    )
    layers: str = field(default="auto", choices=LAYERS, doc="whose neurons the report shows; see `choose_layers`.")

    def check(self) -> None:
        """There is a share for the first layer, for hidden layers and for the last."""
        if len(self.shares) < 3:
            raise wrong(self, "shares", "at least 3, of the first layer, hidden layers and the last")


@settings("")
class BCUSettings:
    """All settings of the defence `bcu`."""

    images: ImagesConfig = field(
        formerly="pictures",
        default=ImagesConfig(made=5000, images=2500),
        doc="what takes the place of unlabelled images.",
    )
    bcu: BCUConfig = field(default=BCUConfig(), doc="the published method.")

    def check(self) -> None:
        """There are enough images for a batch."""
        size = self.bcu.finetuning.batch_size
        if size > self.images.images:
            raise InputError(
                f"bcu.finetuning.batch_size: expected at most {self.images.images}, images.images, found {size}"
            )


class Student(NamedTuple):
    """The network with reinitialised weights, and which they are, `{layer name: bool, the kernel's shape}`."""

    variables: Variables
    drawn: Mapping[str, jax.Array]


def layer_shares(layers: Sequence[Layer], shares: Sequence[float]) -> dict[str, float]:
    """The share of each layer, `{layer name: share}`.

    Args:
      layers: all layers of a network, in execution order. One beside the main path has the share of its position.
      shares: of the first layer, of equal parts of the hidden layers from front to back, and of output layers.
    """
    fed = {name for layer in layers for name in layer.fed_by}
    hidden = [layer for layer in layers[1:] if layer.main_path]
    stages, by_layer, passed = len(shares) - 2, dict[str, float](), 0
    for place, layer in enumerate(layers):
        if place and layer.kind == "dense" and layer.name not in fed and not layer.main_path:
            by_layer[layer.name] = shares[-1]
        elif not place:
            by_layer[layer.name] = shares[0]
        else:
            stage = min(stages - 1, passed * stages // max(1, len(hidden)))
            by_layer[layer.name] = shares[1 + stage]
            passed += layer.main_path
    return by_layer


def reinitialize_weights(
    variables: Variables, layers: Sequence[Layer], shares: Sequence[float], *, key: jax.Array
) -> Student:
    """Draws a share of each kernel's weights from a normal distribution of the kernel's own root mean square.

    Args:
      variables: the suspicious network's variables.
      layers: all layers of its graph.
      shares: see `layer_shares`.
      key: typed PRNG key.
    """
    leaves, drawn, kernels = named_leaves(variables), {}, {}
    for place, (name, share) in enumerate(layer_shares(layers, shares).items()):
        which_key, value_key = jax.random.split(jax.random.fold_in(key, place))
        kernel = leaves[name].astype(jnp.float32)
        drawn[name] = jax.random.bernoulli(which_key, share, kernel.shape)
        fresh = jnp.sqrt(jnp.mean(kernel**2)) * jax.random.normal(value_key, kernel.shape)
        kernels[name] = jnp.where(drawn[name], fresh, kernel).astype(leaves[name].dtype)
    return Student(replace_leaves(variables, kernels), drawn)


def make_student(
    setup: Setup, settings: tuple[float, ...], *, victim: Variables, key: jax.Array, report: Report | None
) -> Student:
    """The student: the network with reinitialised weights."""
    del report
    return reinitialize_weights(victim, setup.graph.layers, settings, key=key)


class DistillationSettings(NamedTuple):
    """The settings of the objective: by how much the temperature rises, over how many epochs, and the statistics."""

    warmth: float
    epochs: int
    statistics: str


def distillation(student: jax.Array, teacher: jax.Array, temperature: float | jax.Array) -> jax.Array:
    """The mean Kullback-Leibler divergence of the student from the teacher, both softened; logits `[n, classes]`."""
    ours, theirs = (jax.nn.log_softmax(own.astype(jnp.float32) / temperature) for own in (student, teacher))
    return jnp.mean(jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1))


def objective(setup: Setup, like: Any, own: DistillationSettings, *, victim: Variables, epoch: jax.Array) -> Objective:
    """The distillation of a batch, at the temperature of its epoch."""
    network = _network(own.statistics)(setup.network)
    temperature = 1 + own.warmth * (epoch + 1) / own.epochs

    def loss(variables: Any, batch: Batch) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        logits, state = network.train(variables, batch.images)
        return distillation(logits, network.apply(victim, batch.images), temperature), (logits, state)

    return make_objective(loss, like, axis_name=setup.axis_name)


def _network(statistics: str) -> Callable[[Network], Network]:
    """The network as it is distilled."""
    return lambda network: network if statistics == "moved" else dataclasses.replace(network, apply_train=None)


def plan(config: BCUSettings) -> Plan:
    """procedural -> redrawn -> distilled -> changes."""
    method, tuning = config.bcu, config.bcu.finetuning
    return (
        Step(
            "procedural", make_procedural, needs("victim"), config.images, key="pictures", shown=Shown("making images")
        ),
        Step("redrawn", make_student, needs("victim"), method.shares, shown=Shown("reinitialising weights")),
        tuning_step(
            "distilled",
            tuning,
            "distilling the suspicious network",
            group="bcu.finetuning",
            start="redrawn",
            clean="procedural",
            more=("victim",),
            own=DistillationSettings(method.warmth, tuning.epochs, method.statistics),
            objective=objective,
            adapt=_network(method.statistics),
            by_epoch=True,
            key="taught",
        ),
        changes_step("distilled"),
    )


def outcome(config: BCUSettings, values: Mapping[str, Any]) -> Outcome:
    """How many weights were reinitialised, and the history of distillation."""
    total, count = count_neurons(values["redrawn"].drawn)  # of weights
    return tuned_outcome(
        values,
        done=f"{count:,} of {total:,} weights reinitialised, distilled on {config.images.images:,} {PROCEDURAL}",
        tuned="distilled",
        scored="Which neurons reinitialisation and distillation changed",
    )


DEFENSE = Defense(
    name="bcu",
    Config=BCUSettings,
    data="none",
    layers=lambda config: config.bcu.layers,
    plan=plan,
    networks=lambda config: ("victim", "redrawn", "distilled"),
    outcome=outcome,
    batch_sizes=lambda config: {"bcu.finetuning.batch_size": config.bcu.finetuning.batch_size},
    source="arXiv 2211.12044",
)
