"""Scores that might tell a backdoored network, and how well a score tells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from otbr_jax import InputError
from otbr_jax.detectors.scores import detection_scores, gini, maximum_over_median, roc, top_share


def networks(seed, count=30):
    """Scores with many ties, and which networks are backdoored, of both kinds."""
    rng = np.random.default_rng(seed)
    backdoored = np.concatenate([rng.random(count - 2) < 0.4, [True, False]])
    return np.round(rng.normal(size=count) + backdoored, int(rng.integers(0, 3))).astype(np.float32), backdoored


@pytest.mark.parametrize("seed", range(6))
def test_the_area_is_mann_whitneys_and_that_under_the_curve(seed):
    scores, backdoored = networks(seed)
    found = roc(scores, backdoored)
    np.testing.assert_allclose(found.auc, sklearn.metrics.roc_auc_score(backdoored, scores), atol=1e-6)
    np.testing.assert_allclose(np.trapezoid(found.true_positive_rate, found.false_positive_rate), found.auc, atol=1e-6)
    expected = sklearn.metrics.roc_curve(backdoored, scores, drop_intermediate=False)[:2]
    points = [np.unique(np.stack(curve, axis=1), axis=0) for curve in (found[:2], expected)]
    np.testing.assert_allclose(*points, atol=1e-6)
    np.testing.assert_array_equal(jax.jit(roc)(scores, backdoored).true_positive_rate, found.true_positive_rate)


@pytest.mark.parametrize("seed", range(3))
def test_what_does_not_matter_to_a_curve_and_what_turns_it(seed):
    scores, backdoored = networks(seed)
    found, order = roc(scores, backdoored), np.random.default_rng(seed).permutation(len(scores))
    for again in (roc(scores[order], backdoored[order]), roc(np.exp(3 * scores), backdoored)):
        for one, other in zip(again, found, strict=True):
            np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(roc(-scores, backdoored).auc, 1 - found.auc, atol=1e-6)
    np.testing.assert_allclose(roc(scores, ~backdoored).auc, 1 - found.auc, atol=1e-6)
    for rate in found[:2]:
        assert (rate[0], rate[-1]) == (0, 1)
        assert np.all(np.diff(rate) >= 0)


def test_the_ends_of_the_scale():
    kinds = jnp.array([False, False, True])
    assert roc(jnp.array([1.0, 2.0, 3.0]), kinds).auc == 1
    assert roc(jnp.array([1.0, 2.0, jnp.inf]), kinds).auc == 1
    assert roc(jnp.array([1.0, 1.0, 1.0]), kinds).auc == 0.5
    assert roc(jnp.array([2.0, 3.0, 1.0]), kinds).auc == 0
    alone = roc(jnp.array([1.0, 2.0]), jnp.array([True, True]))
    assert np.isnan(alone.auc)
    assert np.isnan(alone.false_positive_rate[1:]).all()
    np.testing.assert_array_equal(alone.true_positive_rate, [0, 0.5, 1])
    assert all(np.isnan(values).all() for values in roc(jnp.array([1.0, jnp.nan, 3.0]), kinds))


def test_curves_of_what_are_no_scores():
    with pytest.raises(InputError, match=r"expected one of each for every network, found \(2,\) and \(3,\)"):
        roc(jnp.ones(2), jnp.ones(3, bool))
    with pytest.raises(InputError, match=r"expected one of each for every network, found \(0,\) and \(0,\)"):
        roc(jnp.ones(0), jnp.ones(0, bool))
    with pytest.raises(InputError, match="backdoored: expected true or false for every network, found int32"):
        roc(jnp.ones(2), jnp.ones(2, int))


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_concentration(scale):
    values = scale * jax.random.exponential(jax.random.key(0), (200,))
    x = np.sort(np.asarray(values, np.float64))
    differences = np.abs(x[:, None] - x[None, :]).mean() / (2 * x.mean())
    np.testing.assert_allclose(gini(values), differences, rtol=1e-4)
    np.testing.assert_allclose(top_share(values, top=0.05), x[-10:].sum() / x.sum(), rtol=1e-5)
    np.testing.assert_allclose(maximum_over_median(values), x[-1] / np.median(x), rtol=1e-5)
    shuffled = jax.random.permutation(jax.random.key(1), values)
    np.testing.assert_allclose(gini(shuffled), gini(values), rtol=1e-6)


def test_concentration_from_equal_to_all_in_one():
    equal, one, nothing = jnp.full(20, 3.0), jnp.zeros(20).at[7].set(2.0), jnp.zeros(20)
    np.testing.assert_allclose([gini(equal), gini(one), gini(nothing)], [0, 1 - 1 / 20, 0], atol=1e-6)
    shares = [top_share(values, top=0.1) for values in (equal, one, nothing)]
    np.testing.assert_allclose(shares, [0.1, 1, 0.1], rtol=1e-6)
    np.testing.assert_allclose([top_share(equal, top=1e-3), top_share(equal, top=1)], [1 / 20, 1], rtol=1e-6)
    assert [float(maximum_over_median(values)) for values in (equal, one, nothing)] == [1, np.inf, 1]
    with pytest.raises(InputError, match=r"top: expected a share of neurons in \(0, 1\], found 0"):
        top_share(equal, top=0)


def test_scores_of_a_network():
    active = {"a": jnp.array([9.0, 9.0]), "b": jnp.array([1.0, 2.0, 6.0])}
    moved = {"a": jnp.ones(2), "b": jnp.array([1.0, 1.0, 6.0])}
    found = jax.jit(detection_scores)(active, moved)
    np.testing.assert_allclose(found[:5], [3, 6, 3, 0.6, 0.6], rtol=1e-6)
    np.testing.assert_allclose(found.nwc_gini, gini(jnp.array([1.0, 1.0, 1.0, 1.0, 6.0])), rtol=1e-6)
    with pytest.raises(InputError, match="activeness: expected scores of at least one layer, found none"):
        detection_scores({}, moved)
