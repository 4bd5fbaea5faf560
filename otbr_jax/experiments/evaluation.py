"""Measuring networks: predictions over a test set, and the whole grid gamma x lambda as one compiled program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from otbr_jax.experiments.parallel import split_batch
from otbr_jax.fusion import align, interpolate
from otbr_jax.metrics import Metrics, evaluate_predictions
from otbr_jax.neuron_graph import Layer
from otbr_jax.pruning import prune
from otbr_jax.transport import TransportConfig
from otbr_jax.types import Network, Variables
from otbr_jax.weight_change import Scores


class TestSet(NamedTuple):
    """What networks are measured on.

    Attributes:
      clean: uint8 images `[n, h, w, c]`.
      triggered: the same with the trigger.
      labels: int32 `[n]`, their true classes.
      goals: int32 `[n]`, what the attacker wants the triggered ones to be answered with.
    """

    clean: jax.Array
    triggered: jax.Array
    labels: jax.Array
    goals: jax.Array


class Predictions(NamedTuple):
    """Predicted classes int32 `[n]` of a test set's clean and triggered images."""

    clean: jax.Array
    triggered: jax.Array


class Sweep(NamedTuple):
    """What each setting of a grid gives.

    Attributes:
      pruned: metrics `[gammas]` of the pruned network.
      fused: metrics `[gammas, lambdas]` of the fused network.
      converged: bool `[gammas]`, whether all plans of its fused layers converged.
      marginal_error: `[gammas]`, the worst of them.
    """

    pruned: Metrics
    fused: Metrics
    converged: jax.Array
    marginal_error: jax.Array


def predict(
    network: Network,
    variables: Variables,
    images: jax.Array,
    *,
    prepare: Callable[[jax.Array], jax.Array],
    mesh: Mesh,
    batch_size: int = 512,
) -> jax.Array:
    """Predicted classes, int32 `[n]`, of uint8 images `[n, h, w, c]`; batches are split over the mesh.

    `batch_size` is rounded up to a multiple of the mesh's devices; the last batch is filled up with copies.
    """
    count = len(images)
    batch_size = -(-min(batch_size, count) // mesh.size) * mesh.size
    padded = -(-count // batch_size) * batch_size
    batches = images[jnp.arange(padded) % count].reshape(-1, batch_size, *images.shape[1:])

    def one_batch(batch: jax.Array) -> jax.Array:
        return jnp.argmax(network.apply(variables, prepare(split_batch(batch, mesh))), axis=-1)

    return jax.lax.map(one_batch, batches).reshape(-1)[:count].astype(jnp.int32)


def predict_both(
    network: Network,
    variables: Variables,
    test: TestSet,
    *,
    prepare: Callable[[jax.Array], jax.Array],
    mesh: Mesh,
) -> Predictions:
    """Predictions on the clean and on the triggered images."""
    clean = predict(network, variables, test.clean, prepare=prepare, mesh=mesh)
    return Predictions(clean, predict(network, variables, test.triggered, prepare=prepare, mesh=mesh))


def sweep(
    network: Network,
    backdoored: Variables,
    scores: Scores,
    test: TestSet,
    layers: Sequence[Layer],
    *,
    counts: jax.Array,
    lams: jax.Array,
    config: TransportConfig,
    key: jax.Array,
    prepare: Callable[[jax.Array], jax.Array],
    mesh: Mesh,
    on_setting: Callable[[], None] | None = None,
) -> Sweep:
    """Prunes, fuses and measures for every pair of a gamma and a lambda in one program.

    Transport does not depend on lambda: each gamma is pruned and aligned once, and its lambdas only interpolate.
    One setting is held in memory at a time, so that a grid needs no more of it than a single setting.

    Args:
      network: the functions of the network.
      backdoored: variables of the suspicious network.
      scores: neuron weight changes.
      test: images to measure on.
      layers: the layers to prune and fuse.
      counts: int `[gammas]`, how many neurons each gamma prunes.
      lams: float32 `[lambdas]`.
      config: how plans are computed.
      key: typed PRNG key, which only random masses need.
      prepare: uint8 images -> float32 images as the network takes them.
      mesh: devices that share the images.
      on_setting: called on the host after each gamma (a progress bar); None traces no callback.

    Returns:
      The metrics of every setting, and how well their transport went.
    """

    def measure(variables: Variables) -> Metrics:
        found = predict_both(network, variables, test, prepare=prepare, mesh=mesh)
        return evaluate_predictions(found.clean, found.triggered, test.labels, target=test.goals)

    def one_gamma(count: jax.Array) -> Sweep:
        pruned, info = prune(backdoored, scores, layers, count=count)
        alignment = align(pruned, backdoored, scores, info.pruned, layers, config=config, key=key)
        fused = jax.lax.map(lambda lam: measure(interpolate(backdoored, alignment, lam=lam)), lams)
        plans = [(alignment.info.fused[name], found) for name, found in alignment.info.plans.items()]
        converged = jnp.all(jnp.stack([plan.converged | ~used for used, plan in plans]))
        error = jnp.max(jnp.stack([jnp.where(used, plan.marginal_error, 0.0) for used, plan in plans]))
        result = Sweep(measure(pruned), fused, converged, error)
        if on_setting is not None:
            jax.debug.callback(on_setting)
        return result

    return jax.lax.map(one_gamma, counts)
