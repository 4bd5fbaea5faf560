"""The one loop over a grid: any defence's settings are built, measured and written the same way, screened or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otbr_jax.defenses.grid import FINALISTS, Built, Grid, Measured, Screening, measure, rows
from otbr_jax.metrics import Metrics

KEY = jax.random.key(0)


def grid(values=(0.1, 0.2, 0.3, 0.4), inner=()):
    """The "network" of a setting is its number, and that of an inner one its product with it."""

    def build(setup, setting, *, key, victim):
        del setup, key
        if inner:
            return Built({"start": setting}, lambda value: victim + setting * value, {"large": setting > 0.25})
        return Built({"start": setting, "end": victim + 2 * setting})

    axes = {"a": values} | ({"b": inner} if inner else {})
    return Grid(
        axes=axes, settings=tuple((each,) for each in values), arrays=lambda setup: jnp.array(values), build=build,
        needs=("victim",), along=("a",), strength="a", network="end", unit="a", inner=inner,
    )  # fmt: skip


def ask(variables):
    return Metrics(jnp.float32(1), 1 - variables, variables)


def roughly(variables):
    return Metrics(jnp.float32(1), 1 - jnp.round(variables, 1), jnp.round(variables, 1))


def plain(metrics):
    return {"ra": round(float(metrics.ra), 4)}


def measured(of, screening=None):
    found = jax.jit(lambda victim: measure(of, None, ask, key=KEY, screening=screening, victim=victim))(0.0)
    assert isinstance(found, Measured)
    return rows(of, found, plain)


def test_every_setting_is_a_row():
    assert measured(grid((0.1, 0.25))) == [
        {"a": 0.1, "start": {"ra": 0.1}, "end": {"ra": 0.2}},
        {"a": 0.25, "start": {"ra": 0.25}, "end": {"ra": 0.5}},
    ]


def test_an_inner_axis_finishes_what_was_built_once():
    found = measured(grid((0.2, 0.3), inner=(0.5, 1.0)))
    assert [(row["a"], row["b"], row["end"]["ra"], row["large"]) for row in found] == [
        (0.2, 0.5, 0.1, False),
        (0.2, 1.0, 0.2, False),
        (0.3, 0.5, 0.15, True),
        (0.3, 1.0, 0.3, True),
    ]


@pytest.mark.parametrize("inner", [(), (0.5, 1.0)], ids=["one axis", "two"])
def test_any_grid_can_be_screened(inner):
    """All on few images, the best of those on all; what else is measured is on few."""
    of = grid((0.11, 0.22, 0.33, 0.44), inner)
    whole, found = measured(of), measured(of, Screening(roughly, 10, 100))
    images = np.array([row["end"]["images"] for row in found])
    assert sorted(images)[-FINALISTS:] == [100] * FINALISTS
    assert (sorted(images)[:-FINALISTS] == np.full(len(images) - FINALISTS, 10)).all()
    for row, alone in zip(found, whole, strict=True):
        full = row["end"]["images"] == 100
        assert row["end"]["ra"] == (alone["end"]["ra"] if full else pytest.approx(round(alone["end"]["ra"], 1)))
        assert row["start"]["images"] == 10


def test_few_settings_are_not_screened():
    assert measured(grid((0.1, 0.2, 0.3)), Screening(roughly, 10, 100)) == measured(grid((0.1, 0.2, 0.3)))


def test_each_setting_is_reported():
    seen = []
    measure(grid(), None, ask, key=KEY, report=lambda: seen.append(None), victim=jnp.float32(0))
    jax.effects_barrier()
    assert len(seen) == 4
