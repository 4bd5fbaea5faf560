import jax
import jax.numpy as jnp
import pytest

from otbr_jax.metrics import Metrics, defense_effectiveness, evaluate_predictions


@pytest.mark.parametrize("jit", [False, True])
def test_asr_and_ra_leave_the_target_class_out(jit):
    labels = jnp.array([0, 0, 1, 1, 2])
    clean = jnp.array([0, 1, 1, 1, 0])
    triggered = jnp.array([0, 0, 0, 1, 1])
    function = lambda a, b, c: evaluate_predictions(a, b, c, target=0)  # noqa: E731
    metrics = (jax.jit(function) if jit else function)(clean, triggered, labels)
    assert [float(x) for x in metrics] == pytest.approx([3 / 5, 1 / 3, 1 / 3])


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((0.9, 1.0), (0.9, 0.0), 1.0),
        ((0.9, 1.0), (0.9, 1.0), 0.5),
        ((0.9, 1.0), (0.95, 1.0), 0.5),  # accuracy gained is not rewarded
        ((0.9, 0.8), (0.8, 0.2), 0.75),
    ],
)
def test_der(before, after, expected):
    wrap = lambda pair: Metrics(jnp.float32(pair[0]), jnp.float32(pair[1]), jnp.float32(0))  # noqa: E731
    assert float(defense_effectiveness(wrap(before), wrap(after))) == pytest.approx(expected)
