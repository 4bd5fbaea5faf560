"""Optimal transport between the neurons of two layers: mass, cost and plan.

Plans are entropic (ott-jax's Sinkhorn) or exact (POT's network simplex) behind one signature, `plan`.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.errors import InputError
from otbr_jax.extras import needed
from otbr_jax.settings import field, settings

SOLVERS = ("sinkhorn", "exact")
COSTS = ("euclidean", "squared_euclidean")
MASSES = ("uniform", "nwc", "random")
_PIVOTS = 100_000_000  # the network simplex ends by itself long before: 2,048 neurons take some 100,000


@settings("fusion.transport")
class TransportConfig:
    """What is transported, at which cost, and by which solver; masses and cost as published (OTBR, step 3)."""

    solver: str = field(
        default="sinkhorn",
        choices=SOLVERS,
        doc="`sinkhorn`, entropic plans on the device; `exact`, the network simplex on the host, whatever the device.",
    )
    cost: str = field(
        default="euclidean",
        choices=COSTS,
        doc="between two neurons' weights: `euclidean`, their distance, or `squared_euclidean`.",
    )
    source_mass: str = field(default="uniform", choices=MASSES, doc="of the pruned network's neurons, see `mass`.")
    target_mass: str = field(default="nwc", choices=MASSES, doc="of the suspicious network's neurons, see `mass`.")
    epsilon: float = field(
        default=1e-2,
        above=0,
        doc="entropic regularisation of `sinkhorn`, as a fraction of the mean cost. `benchmarks/transport.py` "
        "compares the default with exact plans.",
    )
    threshold: float = field(
        default=1e-3,
        above=0,
        doc="largest L1 error of the marginals at which a plan of `sinkhorn` counts as converged.",
    )
    max_iterations: int = field(
        default=5000, at_least=1, doc="iterations of `sinkhorn` at most; `Plan.converged` says whether they sufficed."
    )


class Plan(NamedTuple):
    """A transport plan and its quality.

    Attributes:
      matrix: `[m, n]`, mass that goes from source neuron i to target neuron j; sums to 1.
      cost: transport cost, sum of plan times cost matrix.
      marginal_error: L1 distance of the plan's row and column sums from the masses.
      converged: whether the solver met its threshold; for `exact`, whether it reached the optimum.
      iterations: of `sinkhorn`; 0 for `exact`, which does not count.
    """

    matrix: jax.Array
    cost: jax.Array
    marginal_error: jax.Array
    converged: jax.Array
    iterations: jax.Array


def mass(kind: str, scores: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
    """The mass of each neuron of a layer, `[n]`, which sums to 1.

    Args:
      kind: `uniform`, 1/n each; `nwc`, proportional to the scores, so that suspicious neurons receive most; `random`,
        proportional to uniform random numbers, for comparison.
      scores: `[n]`, at least 0, the neuron weight changes.
      key: typed PRNG key, which only `random` needs.

    Raises:
      InputError: if `kind` is unknown, or `random` has no key.
    """
    if kind == "uniform":
        return jnp.full(scores.shape, 1.0 / scores.size)
    if kind == "nwc":
        return proportional_mass(scores)
    if kind != "random":
        raise InputError(f"mass: expected one of {list(MASSES)}, found {kind!r}")
    if key is None:
        raise InputError("key: expected a PRNG key for random masses, found None")
    return proportional_mass(jax.random.uniform(key, scores.shape))


def proportional_mass(scores: jax.Array) -> jax.Array:
    """`scores / sum(scores)`, `[n]`; uniform where all scores are zero, so that the result is never NaN."""
    total = jnp.sum(scores)
    return jnp.where(total > 0, scores / jnp.where(total > 0, total, 1.0), 1.0 / scores.size)


def cost_matrix(source: jax.Array, target: jax.Array, *, kind: str = "euclidean") -> jax.Array:
    """Distances `[m, n]` between the rows of `source [m, d]` and of `target [n, d]`; a `kind` of `COSTS`."""
    squared = (
        jnp.sum(source**2, axis=1)[:, None]
        + jnp.sum(target**2, axis=1)[None, :]
        - 2 * jnp.matmul(source, target.T, precision=jax.lax.Precision.HIGHEST)
    )
    squared = jnp.maximum(squared, 0.0)
    return squared if kind == "squared_euclidean" else jnp.sqrt(squared)


def plan(cost: jax.Array, source: jax.Array, target: jax.Array, *, config: TransportConfig) -> Plan:
    """The optimal transport plan (OTBR, step 3), by the solver that `config` names. Jits and maps with either.

    Args:
      cost: `[m, n]`, at least 0.
      source: `[m]`, mass of the source neurons, sums to 1; zeros are allowed.
      target: `[n]`, mass of the target neurons, sums to 1; zeros are allowed.
      config: solver, regularisation and stopping rule.

    Returns:
      The plan; check `converged` and `marginal_error`.
    """
    solve = _exact if config.solver == "exact" else _sinkhorn
    matrix, converged, iterations = solve(cost, source, target, config)
    error = jnp.sum(jnp.abs(matrix.sum(axis=1) - source)) + jnp.sum(jnp.abs(matrix.sum(axis=0) - target))
    return Plan(matrix, jnp.sum(matrix * cost), error, converged, iterations)


def _sinkhorn(
    cost: jax.Array, source: jax.Array, target: jax.Array, config: TransportConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    from ott.geometry.geometry import Geometry  # takes seconds, which no other step needs
    from ott.problems.linear.linear_problem import LinearProblem
    from ott.solvers.linear.acceleration import Momentum
    from ott.solvers.linear.sinkhorn import Sinkhorn

    scale = jnp.mean(cost)
    scale = jnp.where(scale > 0, scale, 1.0)  # all rows identical: any plan is optimal
    geometry = Geometry(cost_matrix=cost / scale, epsilon=config.epsilon)
    # Small epsilons need over-relaxation to converge; the plain iteration stalls.
    solver = Sinkhorn(
        threshold=config.threshold,
        max_iterations=config.max_iterations,
        momentum=Momentum(value=1.5),  # type: ignore[call-arg]
        implicit_diff=None,
    )
    with jax.default_matmul_precision("highest"):
        output = solver(LinearProblem(geometry, a=source, b=target))
        matrix = output.matrix
    return matrix, jnp.asarray(output.converged), jnp.asarray(output.n_iters)


def _exact(
    cost: jax.Array, source: jax.Array, target: jax.Array, config: TransportConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    del config
    # Imports PyTorch where it is installed: seconds that no other solver needs.
    needed("ot", what="transport.solver=exact")
    results = (jax.ShapeDtypeStruct(cost.shape, jnp.float32), jax.ShapeDtypeStruct((), jnp.bool_))
    matrix, converged = jax.pure_callback(_network_simplex, results, cost, source, target, vmap_method="sequential")
    return matrix, converged, jnp.zeros((), jnp.int32)


def _network_simplex(cost: jax.Array, source: jax.Array, target: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """On the host, in float64; both masses are normalised there, since the solver needs equal sums."""
    import ot

    masses = [np.asarray(mass, np.float64) for mass in (source, target)]
    first, second = (mass / mass.sum() for mass in masses)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the log holds the same
        matrix, log = ot.emd(first, second, np.asarray(cost, np.float64), numItermax=_PIVOTS, log=True)
    return matrix.astype(np.float32), np.asarray(log["warning"] is None)


def barycentric_map(matrix: jax.Array) -> jax.Array:
    """Normalises a plan `[n, n]` by its own column sums: column j holds the convex weights of target neuron j.

    The plan's sums rather than the masses, because an entropic plan misses its masses by a few per cent. A target
    neuron without mass (its weights did not change) keeps the source neuron of the same index.
    """
    totals = matrix.sum(axis=0)
    identity = jnp.eye(matrix.shape[0], matrix.shape[1], dtype=matrix.dtype)
    return jnp.where(totals > 0, matrix / jnp.where(totals > 0, totals, 1.0), identity)
