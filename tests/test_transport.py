import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otbr_jax import InputError, TransportConfig
from otbr_jax.transport import barycentric_map, euclidean_cost, plan, proportional_mass, uniform_mass


def problem(n=24, seed=0):
    a, b, c = jax.random.split(jax.random.key(seed), 3)
    cost = euclidean_cost(jax.random.normal(a, (n, 30)), jax.random.normal(b, (n, 30)))
    return cost, uniform_mass(n), proportional_mass(jax.random.exponential(c, (n,)))


@pytest.mark.parametrize("jit", [False, True])
def test_mass_is_conserved(jit):
    cost, source, target = problem()
    function = lambda *args: plan(*args, config=TransportConfig())  # noqa: E731
    found = (jax.jit(function) if jit else function)(cost, source, target)
    assert bool(found.converged)
    np.testing.assert_allclose(found.matrix.sum(1), source, atol=1e-3)
    np.testing.assert_allclose(found.matrix.sum(0), target, atol=1e-3)
    np.testing.assert_allclose(found.cost, jnp.sum(found.matrix * cost), rtol=1e-6)
    assert float(found.marginal_error) < 2e-3


def test_it_is_nearly_optimal():
    """Against every permutation's cost on equal masses: the optimum is an assignment."""
    import itertools

    cost, source, _ = problem(6)
    best = min(sum(float(cost[i, j]) for i, j in enumerate(p)) / 6 for p in itertools.permutations(range(6)))
    found = plan(cost, source, source, config=TransportConfig(epsilon=1e-3, max_iterations=50_000))
    np.testing.assert_allclose(found.cost, best, rtol=5e-3)


def test_identical_networks_map_onto_themselves():
    weights = jax.random.normal(jax.random.key(3), (16, 40))
    mass = uniform_mass(16)
    found = plan(euclidean_cost(weights, weights), mass, mass, config=TransportConfig())
    np.testing.assert_allclose(barycentric_map(found.matrix), jnp.eye(16), atol=1e-3)


def test_permuting_the_target_permutes_the_plan():
    cost, source, target = problem()
    order = np.random.default_rng(0).permutation(24)
    found = plan(cost[:, order], source, target[order], config=TransportConfig())
    expected = plan(cost, source, target, config=TransportConfig()).matrix[:, order]
    np.testing.assert_allclose(found.matrix, expected, atol=2e-4)


def test_a_zero_mass_makes_no_nan_and_keeps_its_own_neuron():
    cost, source, target = problem()
    target = target.at[5].set(0.0)
    target = target / target.sum()
    found = plan(cost, source, target, config=TransportConfig())
    mapped = barycentric_map(found.matrix)
    assert bool(jnp.all(jnp.isfinite(found.matrix)))
    np.testing.assert_allclose(mapped.sum(0), 1, rtol=1e-5)
    np.testing.assert_array_equal(mapped[:, 5], jnp.eye(24)[5])


def test_identical_rows_and_a_single_neuron():
    same = plan(jnp.zeros((4, 4)), uniform_mass(4), uniform_mass(4), config=TransportConfig())
    np.testing.assert_allclose(same.matrix.sum(0), 0.25, atol=1e-3)
    single = plan(jnp.ones((1, 1)), uniform_mass(1), uniform_mass(1), config=TransportConfig())
    np.testing.assert_allclose(single.matrix, 1.0, atol=1e-3)


def test_masses_never_hold_nan():
    np.testing.assert_allclose(proportional_mass(jnp.array([1.0, 3.0])), [0.25, 0.75])
    np.testing.assert_allclose(proportional_mass(jnp.zeros(4)), 0.25)


def test_stopping_early_is_reported():
    cost, source, target = problem()
    found = plan(cost, source, target, config=TransportConfig(epsilon=1e-3, max_iterations=10))
    assert not bool(found.converged)
    assert float(found.marginal_error) > 1e-2


@pytest.mark.parametrize("field", ["epsilon", "threshold", "max_iterations"])
def test_bad_settings(field):
    with pytest.raises(InputError, match=rf"fusion\.transport\.{field}: expected a finite number above 0, found 0"):
        TransportConfig(**{field: 0})
