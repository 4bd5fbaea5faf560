"""OTBR: data-free repair by random unlearning, NWC pruning and optimal-transport fusion (arXiv 2408.15861)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from otbr_jax.errors import InputError
from otbr_jax.fusion import FusionConfig, FusionInfo, fuse
from otbr_jax.layer_choice import LAYERS
from otbr_jax.neuron_graph import Layer
from otbr_jax.pruning import PruningInfo, neurons_to_prune, prune, reinitialize
from otbr_jax.settings import field, settings
from otbr_jax.types import Network, Variables
from otbr_jax.unlearning import UnlearningConfig, UnlearningInfo, random_unlearning
from otbr_jax.weight_change import RANKINGS, Scores, neuron_weight_changes, rankable

_MASSES = 2**31  # tells the key of random masses from those of the unlearning's steps


@settings("otbr")
class OTBRConfig:
    """The whole method; the defaults are the published ones."""

    unlearning: UnlearningConfig = field(default=UnlearningConfig(), doc="step 1, random unlearning.")
    ranking: str = field(
        default="global",
        choices=RANKINGS,
        doc="step 2, how neurons of different layers compare, see `weight_change.rankable`.",
    )
    gamma: float = field(default=0.1, at_least=0, at_most=1, doc="step 2, share of neurons to prune.")
    m: float = field(
        default=1.0,
        at_least=0,
        at_most=1,
        doc="step 2, share of their weights that is set to zero, those that changed most first; published 1, all.",
    )
    fusion: FusionConfig = field(default=FusionConfig(), doc="step 3, lambda and transport.")
    layers: str = field(
        default="auto", choices=LAYERS, doc="which layers are scored, pruned and fused; see `choose_layers`."
    )


class OTBRInfo(NamedTuple):
    """What happened on the way: `scores` are the neuron weight changes, `{layer name: [neurons]}`."""

    unlearning: UnlearningInfo
    scores: Mapping[str, jax.Array]
    pruning: PruningInfo
    fusion: FusionInfo


def prune_changed(
    variables: Variables,
    unlearned: Variables,
    scores: Scores,
    layers: Sequence[Layer],
    *,
    count: int | jax.Array,
    m: float,
) -> tuple[Variables, PruningInfo]:
    """Step 2: of the `count` neurons with the highest scores, the share `m` of all weights that changed most becomes 0.

    As published with `m` = 1, see `pruning.prune`; less takes the weights as TSBD does, see `pruning.reinitialize`.
    """
    if m == 1:
        return prune(variables, scores, layers, count=count)
    pruned, info = reinitialize(variables, unlearned, scores, layers, count=count, share=m)
    return pruned, PruningInfo(info.neurons)


def otbr(
    network: Network,
    variables: Variables,
    layers: Sequence[Layer],
    *,
    key: jax.Array,
    config: OTBRConfig,
    neighbours: Sequence[Layer] = (),
    axis_name: str | None = None,
) -> tuple[Variables, OTBRInfo]:
    """Repairs a network without any data. Pure; jits; runs inside `jax.pmap` with `axis_name`.

    Args:
      network: the functions of the network.
      variables: the suspicious network's variables.
      layers: the layers to score, prune and fuse, see `choose_layers`.
      key: typed PRNG key for the noise, and for random masses.
      config: the method's settings.
      neighbours: layers that follow where `config.fusion.aligned` says so, see `layer_choice.neighbours`.
      axis_name: mapped axis whose devices share each noise batch.

    Returns:
      `(repaired variables, OTBRInfo)`. Inside jit nothing can be raised: a layer whose scores are all zero gets a
      uniform target mass, and `weight_change.check_scores` reports it from outside.

    Raises:
      InputError: if `layers` is empty.
    """
    if not layers:
        raise InputError("layers: expected at least one convolution on the main path, found none")
    unlearned, unlearning_info = random_unlearning(
        network, variables, key=key, config=config.unlearning, axis_name=axis_name
    )
    scores = rankable(neuron_weight_changes(variables, unlearned, layers), ranking=config.ranking)
    count = neurons_to_prune(config.gamma, sum(layer.neurons for layer in layers))
    pruned, pruning_info = prune_changed(variables, unlearned, scores, layers, count=count, m=config.m)
    repaired, fusion_info = fuse(
        pruned,
        variables,
        scores,
        pruning_info.pruned,
        layers,
        config=config.fusion,
        neighbours=neighbours,
        key=jax.random.fold_in(key, _MASSES),
    )
    return repaired, OTBRInfo(unlearning_info, scores, pruning_info, fusion_info)
