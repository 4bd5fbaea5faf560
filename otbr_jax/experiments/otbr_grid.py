"""The whole grid gamma x lambda of OTBR as one compiled program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from otbr_jax.defenses.otbr import OTBRConfig, prune_changed
from otbr_jax.experiments.evaluation import TestSet, measure
from otbr_jax.fusion import align, interpolate
from otbr_jax.metrics import Metrics
from otbr_jax.neuron_graph import Layer
from otbr_jax.types import Network, Variables
from otbr_jax.weight_change import Scores


class Sweep(NamedTuple):
    """What each setting of a grid gives.

    Attributes:
      pruned: metrics `[gammas]` of the pruned network.
      repaired: metrics `[gammas, lambdas]` of the fused network after `finish`.
      converged: bool `[gammas]`, whether all plans of its fused layers converged.
      marginal_error: `[gammas]`, the worst of them.
    """

    pruned: Metrics
    repaired: Metrics
    converged: jax.Array
    marginal_error: jax.Array


def sweep(
    network: Network,
    backdoored: Variables,
    unlearned: Variables,
    scores: Scores,
    test: TestSet,
    layers: Sequence[Layer],
    *,
    counts: jax.Array,
    lams: jax.Array,
    config: OTBRConfig,
    neighbours: Sequence[Layer] = (),
    key: jax.Array,
    prepare: Callable[[jax.Array], jax.Array],
    mesh: Mesh,
    finish: Callable[[Variables], Variables] = lambda fused: fused,
    on_setting: Callable[[], None] | None = None,
) -> Sweep:
    """Prunes, fuses and measures for every pair of a gamma and a lambda in one program.

    Transport does not depend on lambda: each gamma is pruned and aligned once, and its lambdas only interpolate.
    One setting is held in memory at a time, so that a grid needs no more of it than a single setting.

    Args:
      network: the functions of the network.
      backdoored: variables of the suspicious network.
      unlearned: the same after random unlearning.
      scores: neuron weight changes.
      test: images to measure on.
      layers: the layers to prune and fuse.
      counts: int `[gammas]`, how many neurons each gamma prunes.
      lams: float32 `[lambdas]`.
      config: how the method goes, but for gamma and lambda.
      neighbours: layers that follow, see `fusion.align`.
      key: typed PRNG key, which only random masses need.
      prepare: uint8 images -> float32 images as the network takes them.
      mesh: devices that share the images.
      finish: what is done to each fused network before it is measured.
      on_setting: called on the host after each gamma (a progress bar); None traces no callback.

    Returns:
      The metrics of every setting, and how well their transport went.
    """

    def measured(variables: Variables) -> Metrics:
        return measure(network, variables, test, prepare=prepare, mesh=mesh)

    def one_gamma(count: jax.Array) -> Sweep:
        pruned, info = prune_changed(backdoored, unlearned, scores, layers, count=count, m=config.m)
        alignment = align(
            pruned, backdoored, scores, info.pruned, layers, config=config.fusion, neighbours=neighbours, key=key
        )
        repaired = jax.lax.map(lambda lam: measured(finish(interpolate(backdoored, alignment, lam=lam))), lams)
        plans = [(alignment.info.fused[name], found) for name, found in alignment.info.plans.items()]
        converged = jnp.all(jnp.stack([plan.converged | ~used for used, plan in plans]))
        error = jnp.max(jnp.stack([jnp.where(used, plan.marginal_error, 0.0) for used, plan in plans]))
        result = Sweep(measured(pruned), repaired, converged, error)
        if on_setting is not None:
            jax.debug.callback(on_setting)
        return result

    return jax.lax.map(one_gamma, counts)
