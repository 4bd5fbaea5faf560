"""CLP: channels with a large Lipschitz constant are pruned, without any data (ECCV 2022, arXiv 2208.03111).

A small trigger changes the logits much, so that some channel must amplify it. A channel's Lipschitz constant is bounded
by the largest singular value of its kernel, times the gain of the normalisation behind it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax import plan as plans
from otbr_jax.defenses.defense import Defense, Outcome, count_neurons, rounded
from otbr_jax.defenses.grid import Built, Grid
from otbr_jax.detectors.trigger_size import PROCEDURAL, ImagesConfig, make_procedural
from otbr_jax.graph.choose import LAYERS
from otbr_jax.graph.graph import Layer, NeuronGraph
from otbr_jax.plan import Plan, Report, Setup, Shown, Step, needs
from otbr_jax.settings import field, settings
from otbr_jax.steps.gates import match_pairs, pairs_of
from otbr_jax.steps.procedural import PredictedImages
from otbr_jax.steps.prune import reinitialize
from otbr_jax.steps.score import Scores
from otbr_jax.steps.select import measure_accuracies, strongest_harmless
from otbr_jax.types import Network, Variables, named_leaves


@settings("clp")
class CLPConfig:
    """The whole method; the defaults are the published ones."""

    u: float = field(
        default=3.0, at_least=0, doc="how many standard deviations above its layer's mean a channel is pruned."
    )
    layers: str = field(default="convolutions", choices=LAYERS, doc="which layers are pruned; see `choose_layers`.")


@settings("selection")
class AgreementConfig:
    """How u is chosen without data, on procedural images."""

    u: tuple[float, ...] = field(default=(), at_least=0, doc="values to choose from; empty for `clp.u`.")
    tolerance: float = field(
        default=0.05,
        at_least=0,
        at_most=1,
        doc="share of the procedural images whose predictions the pruned network may change.",
    )


@settings("sweep")
class SweepConfig:
    """The settings that the report shows beside the chosen one; empty for none."""

    u: tuple[float, ...] = field(default=(2.0, 2.5, 3.0, 3.5, 4.0), at_least=0, doc="thresholds.")


@settings("")
class CLPSettings:
    """All settings of the defence `clp`."""

    clp: CLPConfig = field(default=CLPConfig(), doc="the published method.")
    selection: AgreementConfig = field(default=AgreementConfig(), doc="how u is chosen without data.")
    images: ImagesConfig = field(
        formerly="pictures", default=ImagesConfig(), doc="the procedural images that u is chosen on."
    )
    sweep: SweepConfig = field(default=SweepConfig(), doc="settings that the report shows beside the chosen one.")


class Pruned(NamedTuple):
    """The pruned network, and which channels were pruned, `{layer name: bool [neurons]}`."""

    variables: Variables
    pruned: Mapping[str, jax.Array]


def normalisation_gains(setup: Setup, variables: Variables, *, key: jax.Array) -> dict[str, jax.Array]:
    """The gains of the normalisation behind each layer's neurons, `{layer name: [neurons]}`; 1 without one.

    A gain is `|scale| / sqrt(variance)`.
    """
    leaves, pairs = named_leaves(variables), pairs_of(setup.layers)
    gains = {layer.name: jnp.ones(layer.neurons) for layer in setup.layers}
    matched = dict.fromkeys(gains, jnp.bool_(False))
    for (layer, scale, variance), same in zip(
        pairs, match_pairs(setup.network, variables, pairs, key=key), strict=True
    ):
        spread = leaves[variance.name].astype(jnp.float32)
        first = same & ~matched[layer]
        gain = jnp.abs(leaves[scale.name]) / jnp.sqrt(jnp.where(spread > 0, spread, 1.0))
        gains[layer] = jnp.where(first, gain, gains[layer])
        matched[layer] |= first
    return gains


def largest_singular_values(kernel: jax.Array, layer: Layer) -> jax.Array:
    """The largest singular value of each neuron's kernel as a matrix of inputs and positions, float32 `[neurons]`."""
    axes = (*layer.neuron_axes, *layer.input_axes)
    first = jnp.moveaxis(kernel, axes, range(len(axes))).astype(jnp.float32)
    inputs = math.prod(kernel.shape[axis] for axis in layer.input_axes)
    return jnp.linalg.norm(first.reshape(layer.neurons, inputs, -1), ord=2, axis=(1, 2))


def score(setup: Setup, settings: None, *, victim: Variables, key: jax.Array, **_: Any) -> dict[str, jax.Array]:
    """By how many standard deviations each channel's Lipschitz constant lies above its layer's mean."""
    gains, leaves = normalisation_gains(setup, victim, key=key), named_leaves(victim)
    scores = {}
    for layer in setup.layers:
        bound = largest_singular_values(leaves[layer.name], layer) * gains[layer.name]
        spread = jnp.std(bound, ddof=1) if layer.neurons > 1 else jnp.float32(0)
        scores[layer.name] = jnp.where(spread > 0, (bound - jnp.mean(bound)) / jnp.where(spread > 0, spread, 1.0), 0.0)
    return scores


class Agreement(NamedTuple):
    """The agreement of each threshold, and the chosen one.

    Attributes:
      u: `[thresholds]`, descending; the first one is the highest score, at which nothing is pruned.
      agreement: `[thresholds]`, share of the procedural images that are predicted as before, in [0, 1].
      chosen: index of the chosen one.
    """

    u: jax.Array
    agreement: jax.Array
    chosen: jax.Array


def select(
    setup: Setup,
    settings: AgreementConfig,
    *,
    victim: Variables,
    scores: Scores,
    procedural: PredictedImages,
    report: Report | None,
    **_: Any,
) -> Agreement:
    """Chooses the smallest u at which, as at all larger ones, the agreement is within the tolerance."""
    highest = jnp.max(jnp.stack([jnp.max(score) for score in scores.values()]))
    u = jnp.array([jnp.inf, *sorted({*settings.u}, reverse=True)])
    u = jnp.minimum(u, highest)

    def pruned(u: jax.Array) -> Variables:
        return prune(setup, u, victim=victim, scores=scores).variables

    agreement = measure_accuracies(setup.network, pruned, u, procedural.batch, report=report)
    chosen = strongest_harmless(agreement, reference=jnp.float32(1), tolerance=settings.tolerance)
    return Agreement(u, agreement, chosen)


def prune_chosen(
    setup: Setup, settings: None, *, victim: Variables, scores: Scores, selected: Agreement, **_: Any
) -> Pruned:
    """Prunes at the chosen u."""
    return prune(setup, selected.u[selected.chosen], victim=victim, scores=scores)


def prune(setup: Setup, settings: float | jax.Array, *, victim: Variables, scores: Scores, **_: Any) -> Pruned:
    """Zeroes all parameters of the channels that are more than `settings` standard deviations above the mean."""
    count = sum(jnp.sum(score > settings) for score in scores.values())
    pruned, info = reinitialize(victim, victim, scores, setup.layers, count=count, share=1.0, scheme="neurons")
    return Pruned(pruned, info.neurons)


def plan(config: CLPSettings) -> Plan:
    """scores (-> procedural -> selected) -> pruned."""
    scores, selection = Step("scores", score, needs("victim"), shown=Shown("Lipschitz constants")), config.selection
    if not selection.u:
        return scores, Step("pruned", prune, needs("victim", "scores"), config.clp.u, shown=Shown("pruning"))
    return (
        scores,
        Step(
            "procedural", make_procedural, needs("victim"), config.images, key="pictures", shown=Shown("making images")
        ),
        Step(
            "selected",
            select,
            needs("victim", "scores", "procedural"),
            selection,
            shown=Shown("choosing u, procedural images only", total=1 + len({*selection.u}), unit="u"),
        ),
        Step("pruned", prune_chosen, needs("victim", "scores", "selected"), shown=Shown("pruning")),
    )


def clp(
    network: Network, variables: Variables, graph: NeuronGraph, *, key: jax.Array, config: CLPConfig
) -> tuple[Variables, Pruned]:
    """Repairs a network without any data. Pure; jits.

    Args:
      network: the functions of the network.
      variables: the suspicious network's variables.
      graph: its neuron graph; `config.layers` says which of its layers are pruned.
      key: typed PRNG key of the images that scales are identified with.
      config: the method's settings.

    Returns:
      `(repaired variables, Pruned)`.

    Raises:
      InputError: if there are no such layers.
    """
    setup = plans.set_up(network, graph, layers=config.layers)
    pruned = plans.run(plan(CLPSettings(clp=config)), setup, {"victim": variables}, key=key)["pruned"]
    return pruned.variables, pruned


def build(setup: Setup, setting: jax.Array, *, victim: Variables, scores: Scores, key: jax.Array) -> Built:
    """The network without the channels above a threshold."""
    del key
    return Built({"pruned": prune(setup, setting, victim=victim, scores=scores).variables})


def grid(config: CLPSettings) -> Grid | None:
    """The thresholds to measure."""
    u = config.sweep.u
    if not u:
        return None
    return Grid(
        axes={"u": u},
        settings=tuple((each,) for each in u),
        arrays=lambda setup: jnp.array(u),
        build=build,
        needs=("victim", "scores"),
        along=("u",),
        strength="u, standard deviations above the mean",
        network="pruned",
        unit="u",
    )


def outcome(config: CLPSettings, values: Mapping[str, Any]) -> Outcome:
    """How many channels were pruned."""
    pruned = values["pruned"].pruned
    scored, count = count_neurons(pruned)
    choice, more = {"u": config.clp.u, "chosen_by": "config"}, {}
    if "selected" in values:
        u, agreement, chosen = values["selected"]
        choice = {"u": rounded(u[int(chosen)]), "chosen_by": PROCEDURAL}
        pairs = zip(u, agreement, strict=True)
        more = {"tried": [{"u": rounded(each), "agreement": rounded(share)} for each, share in pairs]}
    return Outcome(
        choice=choice,
        done=f"{count} of {scored} channels pruned",
        did="pruned",
        neurons={"scored": scored, "pruned": count},
        touched=pruned,
        scores=values["scores"],
        score="standard deviations above the mean",
        scored="Which channels have the largest Lipschitz constants",
        more=more,
    )


DEFENSE = Defense(
    name="clp",
    Config=CLPSettings,
    data="none",
    layers=lambda config: config.clp.layers,
    plan=plan,
    networks=lambda config: ("victim", "pruned"),
    outcome=outcome,
    grid=grid,
    source="arXiv 2208.03111",
)
