"""Optimal transport between the neurons of two layers: mass, cost and plan."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ott.geometry.geometry import Geometry
from ott.problems.linear.linear_problem import LinearProblem
from ott.solvers.linear.acceleration import Momentum
from ott.solvers.linear.sinkhorn import Sinkhorn

from otbr_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class TransportConfig:
    """Entropic transport with ott-jax's Sinkhorn solver.

    Attributes:
      epsilon: entropic regularisation, as a fraction of the mean cost.
      threshold: largest L1 error of the marginals at which the plan counts as converged.
      max_iterations: where the solver stops all the same; `Plan.converged` then says so.
    """

    epsilon: float = 1e-2
    threshold: float = 1e-3
    max_iterations: int = 5000

    def __post_init__(self) -> None:
        for field in ("epsilon", "threshold", "max_iterations"):
            if not 0 < getattr(self, field) < float("inf"):
                raise InputError(
                    f"fusion.transport.{field}: expected a finite number above 0, found {getattr(self, field)}"
                )


class Plan(NamedTuple):
    """A transport plan and how good it is.

    Attributes:
      matrix: `[m, n]`, how much of source neuron i's mass goes to target neuron j; sums to 1.
      cost: transport cost, sum of plan times cost matrix.
      marginal_error: L1 distance of the plan's row and column sums from the masses.
      converged: whether the solver met its threshold.
      iterations: how many iterations it took.
    """

    matrix: jax.Array
    cost: jax.Array
    marginal_error: jax.Array
    converged: jax.Array
    iterations: jax.Array


def uniform_mass(n: int) -> jax.Array:
    """`[n]`, 1/n each."""
    return jnp.full((n,), 1.0 / n)


def proportional_mass(scores: jax.Array) -> jax.Array:
    """`scores / sum(scores)`, `[n]`; uniform where all scores are zero, so that the result is never NaN."""
    total = jnp.sum(scores)
    return jnp.where(total > 0, scores / jnp.where(total > 0, total, 1.0), 1.0 / scores.size)


def euclidean_cost(source: jax.Array, target: jax.Array) -> jax.Array:
    """Euclidean distances `[m, n]` between the rows of `source [m, d]` and of `target [n, d]`."""
    squared = (
        jnp.sum(source**2, axis=1)[:, None]
        + jnp.sum(target**2, axis=1)[None, :]
        - 2 * jnp.matmul(source, target.T, precision=jax.lax.Precision.HIGHEST)
    )
    return jnp.sqrt(jnp.maximum(squared, 0.0))


def plan(cost: jax.Array, source: jax.Array, target: jax.Array, *, config: TransportConfig) -> Plan:
    """The entropic optimal transport plan (OTBR, step 3), by ott-jax's Sinkhorn iterations.

    Args:
      cost: `[m, n]`, at least 0.
      source: `[m]`, mass of the source neurons, sums to 1; zeros are allowed.
      target: `[n]`, mass of the target neurons, sums to 1; zeros are allowed.
      config: regularisation and stopping rule.

    Returns:
      The plan; look at `converged` and `marginal_error`.
    """
    scale = jnp.mean(cost)
    scale = jnp.where(scale > 0, scale, 1.0)  # all rows identical: any plan is optimal
    geometry = Geometry(cost_matrix=cost / scale, epsilon=config.epsilon)
    # Over-relaxation is what makes small epsilons converge; the plain iteration stalls there.
    solver = Sinkhorn(
        threshold=config.threshold,
        max_iterations=config.max_iterations,
        momentum=Momentum(value=1.5),  # type: ignore[call-arg]
        implicit_diff=None,
    )
    with jax.default_matmul_precision("highest"):
        output = solver(LinearProblem(geometry, a=source, b=target))
        matrix = output.matrix
    error = jnp.sum(jnp.abs(matrix.sum(axis=1) - source)) + jnp.sum(jnp.abs(matrix.sum(axis=0) - target))
    return Plan(
        matrix=matrix,
        cost=jnp.sum(matrix * cost),
        marginal_error=error,
        converged=jnp.asarray(output.converged),
        iterations=jnp.asarray(output.n_iters),
    )


def barycentric_map(matrix: jax.Array) -> jax.Array:
    """Normalises a plan `[n, n]` by its own column sums: column j holds the convex weights of target neuron j.

    The plan's sums rather than the masses, because an entropic plan misses its masses by a few per cent. A target
    neuron without mass (its weights did not change) keeps the source neuron of the same index.
    """
    totals = matrix.sum(axis=0)
    identity = jnp.eye(matrix.shape[0], matrix.shape[1], dtype=matrix.dtype)
    return jnp.where(totals > 0, matrix / jnp.where(totals > 0, totals, 1.0), identity)
