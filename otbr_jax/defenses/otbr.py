"""OTBR: data-free repair by random unlearning, NWC pruning and optimal-transport fusion (arXiv 2408.15861)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from otbr_jax import plan as plans
from otbr_jax.graph.choose import LAYERS
from otbr_jax.graph.graph import NeuronGraph
from otbr_jax.plan import Plan, Report, Setup, Shown, Step, Work, needs
from otbr_jax.settings import field, settings
from otbr_jax.steps.fuse import FusionConfig, FusionInfo, fuse
from otbr_jax.steps.prune import PruningInfo, neurons_to_prune, prune
from otbr_jax.steps.score import Scores, check_scores, neuron_weight_changes
from otbr_jax.steps.unlearn import UnlearningConfig, UnlearningInfo, random_unlearning
from otbr_jax.types import Network, Variables


@settings("otbr")
class OTBRConfig:
    """The whole method; the defaults are the published ones."""

    unlearning: UnlearningConfig = field(default=UnlearningConfig(), doc="step 1, random unlearning.")
    gamma: float = field(default=0.1, at_least=0, at_most=1, doc="step 2, share of neurons to prune.")
    fusion: FusionConfig = field(default=FusionConfig(), doc="step 3, lambda and transport.")
    layers: str = field(
        default="auto", choices=LAYERS, doc="which layers are scored, pruned and fused; see `choose_layers`."
    )


class Unlearned(NamedTuple):
    """The unlearned network, and the history of unlearning."""

    variables: Variables
    info: Any


class Pruned(NamedTuple):
    """The pruned network, and which neurons were pruned."""

    variables: Variables
    info: PruningInfo


class Fused(NamedTuple):
    """The fused network, and the alignment of its layers."""

    variables: Variables
    info: FusionInfo


class OTBRInfo(NamedTuple):
    """The info of all steps; `scores` are the neuron weight changes, `{layer name: [neurons]}`."""

    unlearning: UnlearningInfo
    scores: Mapping[str, jax.Array]
    pruning: PruningInfo
    fusion: FusionInfo


def unlearn_noise(
    setup: Setup, settings: UnlearningConfig, *, victim: Variables, key: jax.Array, report: Report | None
) -> Unlearned:
    """Step 1: random unlearning; devices share noise and batches."""
    return Unlearned(
        *random_unlearning(
            setup.network,
            victim,
            key=key,
            config=settings,
            axis_name=setup.axis_name,
            on_step=report,
        )
    )


def score(setup: Setup, settings: None, *, victim: Variables, unlearned: Unlearned, **_: Any) -> dict[str, jax.Array]:
    """Step 2: the neuron weight changes of every layer that is repaired."""
    del settings
    return neuron_weight_changes(victim, unlearned.variables, setup.layers)


def prune_share(setup: Setup, settings: float, *, victim: Variables, scores: Scores, **_: Any) -> Pruned:
    """Step 2: prunes the share gamma, `settings`, of the neurons that changed most."""
    return Pruned(*prune(victim, scores, setup.layers, count=neurons_to_prune(settings, setup.neurons)))


def fuse_pruned(
    setup: Setup,
    settings: FusionConfig,
    *,
    victim: Variables,
    scores: Scores,
    pruned: Pruned,
    key: jax.Array,
    report: Report | None,
    lam: jax.Array | None = None,
) -> Fused:
    """Step 3: aligns the pruned network with the victim by transport, and interpolates; `lam` in place of lambda."""
    del report
    fused = fuse(
        pruned.variables,
        victim,
        scores,
        pruned.info.pruned,
        setup.layers,
        config=settings,
        lam=lam,
        key=key,
    )
    return Fused(*fused)


def unlearning_step(config: UnlearningConfig) -> Step:
    """Random unlearning."""
    title = "unlearning on noise"
    return Step(
        "unlearned",
        unlearn_noise,
        needs("victim"),
        config,
        shown=Shown(
            title,
            total=config.steps,
            work=lambda setup: Work(
                f"{config.steps} steps of unlearning on {config.batch_size} images",
                0,
                1.5 * config.steps * config.batch_size,  # gradients by weights too
                "--config.otbr.unlearning.steps=5",
            ),
            lighter="unlearning.batch_size",
        ),
    )


SCORES = Step(
    "scores",
    score,
    needs("victim", "unlearned"),
    check=lambda _, scores: check_scores(scores),
    shown=Shown("neuron weight changes"),
)
"""Neuron weight changes; raises if layers cannot be scored."""


def plan(config: OTBRConfig) -> Plan:
    """The published method: unlearned -> scores -> pruned -> fused."""
    return (
        unlearning_step(config.unlearning),
        SCORES,
        Step("pruned", prune_share, needs("victim", "scores"), config.gamma, shown=Shown("pruning")),
        Step(
            "fused",
            fuse_pruned,
            needs("victim", "scores", "pruned"),
            config.fusion,
            shown=Shown("transport and fusion"),
        ),
    )


def otbr(
    network: Network,
    variables: Variables,
    graph: NeuronGraph,
    *,
    key: jax.Array,
    config: OTBRConfig,
    axis_name: str | None = None,
) -> tuple[Variables, OTBRInfo]:
    """Repairs a network without any data. Pure; jits; runs inside `jax.pmap` with `axis_name`.

    Args:
      network: the functions of the network.
      variables: the suspicious network's variables.
      graph: its neuron graph; `config.layers` says which of its layers are scored, pruned and fused.
      key: typed PRNG key for the noise, and for random masses.
      config: the method's settings.
      axis_name: mapped axis whose devices share each noise batch.

    Returns:
      `(repaired variables, OTBRInfo)`. Inside jit nothing can be raised: a layer whose scores are all zero gets a
      uniform target mass, and `weight_change.check_scores` reports it from outside.

    Raises:
      InputError: if there are no such layers.
    """
    setup = plans.set_up(network, graph, layers=config.layers, axis_name=axis_name)
    values = plans.run(plan(config), setup, {"victim": variables}, key=key)
    info = OTBRInfo(values["unlearned"].info, values["scores"], values["pruned"].info, values["fused"].info)
    return values["fused"].variables, info
