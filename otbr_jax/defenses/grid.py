"""A grid of settings beside the chosen one: one loop builds and measures the networks of all settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.metrics import Metrics, defense_effectiveness, rounded
from otbr_jax.plan import Report, Setup
from otbr_jax.types import Variables

FINALISTS = 3
"""How many settings of a grid are measured on all images, where all settings are measured on fewer."""

Evaluate = Callable[[Variables], Metrics]
"""`variables -> Metrics` on a test set."""


class Built(NamedTuple):
    """The networks of a setting.

    Attributes:
      networks: `{name: variables}`, names of `Defense.networks` in their order.
      finish: `value of the inner axis -> variables` of `Grid.network`; None where `networks` has it.
      info: `{name: bool or float scalar}`, further fields of its row.
    """

    networks: Mapping[str, Variables]
    finish: Callable[[jax.Array], Variables] | None = None
    info: Mapping[str, jax.Array] = {}


class Grid(NamedTuple):
    """The settings of a grid, to be compared with the chosen one.

    Attributes:
      axes: `{name: values}`, such as gamma and lambda.
      settings: the values of the axes, one setting after the other; without the last axis where that is `inner`.
      arrays: `setup -> pytree of arrays [settings, ...]`, what `build` takes of each setting.
      build: `(setup, setting, *, key, **needs) -> Built`. `key` is the run's; see `plan.named_key`.
      needs: names of the steps whose values `build` takes; `victim` is one.
      along: the axes whose product is the strength of the repair.
      strength: that product in words.
      network: the network that settings are compared by, a name of `Defense.networks`.
      unit: of what a progress bar counts.
      inner: the values of the last axis, if each setting of the others is built once for all of them; else empty.
      screening: on how many images all settings are measured first, 0 for all.
    """

    axes: Mapping[str, tuple[float, ...]]
    settings: tuple[tuple[float, ...], ...]
    arrays: Callable[[Setup], Any]
    build: Callable[..., Built]
    needs: tuple[str, ...]
    along: tuple[str, ...]
    strength: str
    network: str
    unit: str
    inner: tuple[float, ...] = ()
    screening: int = 0


class Screening(NamedTuple):
    """How the settings of a grid are measured first, where that is not on all test images.

    Attributes:
      evaluate: `variables -> Metrics` on some of the images.
      images: how many these are.
      whole: how many there are.
    """

    evaluate: Evaluate
    images: int
    whole: int


class Measured(NamedTuple):
    """The metrics of each setting, `[settings]`; those of `Grid.network` `[settings, inner]`, if it has an inner axis.

    Attributes:
      metrics: `{name of a network: Metrics}`.
      info: `Built.info` of each setting.
      images: int32, on how many images `Grid.network` was measured; other networks were on the fewest of these. None
        where all were measured on all images.
    """

    metrics: Mapping[str, Metrics]
    info: Mapping[str, jax.Array]
    images: jax.Array | None = None


def measure(
    grid: Grid,
    setup: Setup,
    evaluate: Evaluate,
    *,
    key: jax.Array,
    report: Report | None = None,
    screening: Screening | None = None,
    **values: Any,
) -> Measured:
    """Builds and measures every setting in one program that holds one network at a time.

    With `screening` all settings are measured on its images, and the `FINALISTS` with the highest DER there are built
    again and measured by `evaluate`.

    Args:
      grid: the settings.
      setup: what every step may read.
      evaluate: `variables -> Metrics` on the whole test set.
      key: the run's.
      report: called on the host after each of `grid.settings`.
      screening: how networks are measured on few images; if None, or with few settings, `evaluate` measures all.
      values: those of the steps that `grid.needs` names.
    """
    if len(grid.settings) * max(1, len(grid.inner)) <= FINALISTS:
        screening = None
    first = evaluate if screening is None else screening.evaluate
    settings, inner = grid.arrays(setup), jnp.array(grid.inner, jnp.float32)

    def one(setting: Any) -> Measured:
        built = grid.build(setup, setting, key=key, **values)
        metrics = {name: first(variables) for name, variables in built.networks.items()}
        if (finish := built.finish) is not None:
            metrics[grid.network] = jax.lax.map(lambda value: first(finish(value)), inner)
        if report is not None:
            jax.debug.callback(report)
        return Measured(metrics, dict(built.info))

    measured = jax.lax.map(one, settings)
    if screening is None:
        return measured

    def in_full(place: tuple[jax.Array, ...]) -> Metrics:
        setting = jax.tree.map(lambda array: array[place[0]], settings)
        built = grid.build(setup, setting, key=key, **values)
        return evaluate(built.networks[grid.network] if built.finish is None else built.finish(inner[place[1]]))

    own = measured.metrics[grid.network]
    der = defense_effectiveness(screening.evaluate(values["victim"]), own)
    best = jnp.unravel_index(jax.lax.top_k(der.ravel(), FINALISTS)[1], der.shape)
    whole = jax.lax.map(in_full, best)
    mixed = jax.tree.map(lambda every, few: every.at[best].set(few), own, whole)
    images = jnp.full(der.shape, screening.images, jnp.int32).at[best].set(screening.whole)
    return Measured({**measured.metrics, grid.network: mixed}, measured.info, images)


def rows(grid: Grid, measured: Measured, row: Callable[[Metrics], dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of plain values, one for each setting: its axes, the metrics of its networks, and its `info`.

    Args:
      grid: the settings.
      measured: their metrics.
      row: `Metrics -> plain values`; where settings were screened, `images` is added.
    """
    images = None if measured.images is None else np.asarray(measured.images)

    def of(name: str, place: tuple[int, ...]) -> dict[str, Any]:
        at = place if name == grid.network else place[:1]
        plain = row(jax.tree.map(lambda values: values[at], measured.metrics[name]))
        if images is None:
            return plain
        return plain | {"images": int(images[place] if name == grid.network else images.min())}

    own, names = (len(grid.inner),) if grid.inner else (), [*measured.metrics]
    names.sort(key=lambda name: name == grid.network)  # the one that settings are compared by last
    return [
        dict(zip(grid.axes, (*grid.settings[place[0]], *(grid.inner[at] for at in place[1:])), strict=True))
        | {name: of(name, place) for name in names}
        | {name: _plain(values[place[0]]) for name, values in measured.info.items()}
        for place in np.ndindex(len(grid.settings), *own)
    ]


def _plain(value: Any) -> bool | float:
    return bool(value) if value.dtype == bool else rounded(value)
