import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otbr_jax import InputError, TransportConfig
from otbr_jax.steps.transport import SOLVERS, barycentric_map, cost_matrix, mass, plan, proportional_mass


def uniform_mass(n):
    return mass("uniform", jnp.zeros(n))


# One program for each size and configuration.
solved = jax.jit(plan, static_argnames="config")


def problem(n=24, seed=0):
    a, b, c = jax.random.split(jax.random.key(seed), 3)
    cost = cost_matrix(jax.random.normal(a, (n, 30)), jax.random.normal(b, (n, 30)))
    return cost, uniform_mass(n), proportional_mass(jax.random.exponential(c, (n,)))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("jit", [False, True])
def test_mass_is_conserved(jit, solver):
    cost, source, target = problem()
    result = (solved if jit else plan)(cost, source, target, config=TransportConfig(solver=solver))
    assert bool(result.converged)
    np.testing.assert_allclose(result.matrix.sum(1), source, atol=1e-3)
    np.testing.assert_allclose(result.matrix.sum(0), target, atol=1e-3)
    np.testing.assert_allclose(result.cost, jnp.sum(result.matrix * cost), rtol=1e-6)
    assert float(result.marginal_error) < 2e-3


@pytest.mark.parametrize(("solver", "tolerance"), [("sinkhorn", 5e-3), ("exact", 1e-6)])
def test_it_is_nearly_optimal(solver, tolerance):
    """Against every permutation's cost on equal masses: the optimum is an assignment."""
    import itertools

    cost, source, _ = problem(6)
    best = min(sum(float(cost[i, j]) for i, j in enumerate(p)) / 6 for p in itertools.permutations(range(6)))
    result = solved(cost, source, source, config=TransportConfig(solver, epsilon=1e-3, max_iterations=50_000))
    np.testing.assert_allclose(result.cost, best, rtol=tolerance)


@pytest.mark.parametrize("solver", SOLVERS)
def test_identical_networks_map_onto_themselves(solver):
    weights = jax.random.normal(jax.random.key(3), (24, 40))
    same = uniform_mass(24)
    result = solved(cost_matrix(weights, weights), same, same, config=TransportConfig(solver))
    np.testing.assert_allclose(barycentric_map(result.matrix), jnp.eye(24), atol=1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_permuting_the_target_permutes_the_plan(solver):
    cost, source, target = problem()
    order = np.random.default_rng(0).permutation(24)
    result = solved(cost[:, order], source, target[order], config=TransportConfig(solver))
    expected = solved(cost, source, target, config=TransportConfig(solver)).matrix[:, order]
    np.testing.assert_allclose(result.matrix, expected, atol=2e-4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_zero_mass_makes_no_nan_and_keeps_its_own_neuron(solver):
    cost, source, target = problem()
    target = target.at[5].set(0.0)
    target = target / target.sum()
    result = solved(cost, source, target, config=TransportConfig(solver))
    mapped = barycentric_map(result.matrix)
    assert bool(jnp.all(jnp.isfinite(result.matrix)))
    np.testing.assert_allclose(mapped.sum(0), 1, rtol=1e-5)
    np.testing.assert_array_equal(mapped[:, 5], jnp.eye(24)[5])


@pytest.mark.parametrize("solver", SOLVERS)
def test_identical_rows_and_a_single_neuron(solver):
    config = TransportConfig(solver)
    same = solved(jnp.zeros((24, 24)), uniform_mass(24), uniform_mass(24), config=config)
    np.testing.assert_allclose(same.matrix.sum(0), 1 / 24, atol=1e-3)
    # Pruned neurons: whatever way their mass is shared, as much of it leaves them.
    cost, source, target = problem()
    tied = solved(cost.at[:6].set(cost[0]), source, target, config=config)
    np.testing.assert_allclose(tied.matrix.sum(1), source, atol=1e-3)
    single = solved(jnp.ones((1, 1)), uniform_mass(1), uniform_mass(1), config=config)
    np.testing.assert_allclose(single.matrix, 1.0, atol=1e-3)


def test_entropic_plans_approach_the_exact_one():
    problems = problem()
    exact = solved(*problems, config=TransportConfig("exact"))
    assert bool(exact.converged)
    assert np.count_nonzero(exact.matrix) <= 2 * 24 - 1  # a vertex of the polytope
    plans = [solved(*problems, config=TransportConfig(epsilon=e, max_iterations=50_000)) for e in (1e-1, 1e-2, 1e-3)]
    gaps = [float(each.cost / exact.cost) - 1 for each in plans]
    distances = [float(jnp.sum(jnp.abs(each.matrix - exact.matrix))) for each in plans]
    assert gaps == sorted(gaps, reverse=True)
    assert distances == sorted(distances, reverse=True)
    assert -1e-4 < gaps[-1] < 2e-3


@pytest.mark.parametrize("solver", SOLVERS)
def test_plans_map_over_problems(solver):
    problems = [problem(seed=seed) for seed in range(3)]
    config = TransportConfig(solver)
    stacked = [jnp.stack(part) for part in zip(*problems, strict=True)]
    for mapped in (
        jax.vmap(lambda *p: plan(*p, config=config)),
        lambda *p: jax.lax.map(lambda q: plan(*q, config=config), p),
    ):
        batch = jax.jit(mapped)(*stacked)
        for index, each in enumerate(problems):
            np.testing.assert_allclose(batch.matrix[index], solved(*each, config=config).matrix, atol=2e-3)


def test_costs():
    source, target = jax.random.normal(jax.random.key(0), (3, 5)), jax.random.normal(jax.random.key(1), (4, 5))
    expected = np.linalg.norm(np.asarray(source)[:, None] - np.asarray(target)[None], axis=-1)
    np.testing.assert_allclose(cost_matrix(source, target), expected, rtol=1e-5)
    np.testing.assert_allclose(cost_matrix(source, target, kind="squared_euclidean"), expected**2, rtol=1e-5)


def test_masses_never_hold_nan():
    scores, key = jnp.array([1.0, 3.0]), jax.random.key(0)
    np.testing.assert_allclose(mass("uniform", scores), 0.5)
    np.testing.assert_allclose(mass("nwc", scores), [0.25, 0.75])
    np.testing.assert_allclose(mass("nwc", jnp.zeros(4)), 0.25)
    np.testing.assert_allclose(mass("random", scores, key=key).sum(), 1.0, rtol=1e-6)
    assert not np.allclose(mass("random", scores, key=key), mass("random", scores, key=jax.random.key(1)))
    with pytest.raises(InputError, match="key: expected a PRNG key for random masses, found None"):
        mass("random", scores)
    with pytest.raises(InputError, match=r"mass: expected one of \['uniform', 'nwc', 'random'\], found 'nix'"):
        mass("nix", scores)


def test_stopping_early_is_reported():
    cost, source, target = problem()
    result = solved(cost, source, target, config=TransportConfig(epsilon=1e-3, max_iterations=10))
    assert not bool(result.converged)
    assert float(result.marginal_error) > 1e-2


@pytest.mark.parametrize("field", ["epsilon", "threshold", "max_iterations"])
def test_bad_settings(field):
    with pytest.raises(
        InputError,
        match=rf"fusion\.transport\.{field}: expected a (number above 0|whole number of at least 1), found 0",
    ):
        TransportConfig(**{field: 0})


@pytest.mark.parametrize("field", ["solver", "cost", "source_mass", "target_mass"])
def test_unknown_names(field):
    with pytest.raises(InputError, match=rf"fusion\.transport\.{field}: expected one of \[.*\], found 'nix'"):
        TransportConfig(**{field: "nix"})
