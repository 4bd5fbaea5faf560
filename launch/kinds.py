"""The kinds of settings that programs have: their classes, imported late, since they import JAX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """Settings of one kind.

    Attributes:
      Config: their class.
      variants: values that choose each variant of them: by defence, or a single one with an empty name.
    """

    Config: type[Any]
    variants: Mapping[str, Mapping[str, Any]] = {"": {}}


def _repair() -> Kind:
    from otbr_jax.studies.repair_config import KINDS, RepairConfig

    return Kind(RepairConfig, {name: {"defense": name} for name in KINDS})


def _victim() -> Kind:
    from otbr_jax.victims.config import VictimConfig

    return Kind(VictimConfig)


def _ablation() -> Kind:
    from otbr_jax.studies.ablation import ABLATION

    return Kind(ABLATION.Config)


def _activeness() -> Kind:
    from otbr_jax.studies.activeness import ACTIVENESS

    return Kind(ACTIVENESS.Config)


def _correlation() -> Kind:
    from otbr_jax.studies.correlation import CORRELATION

    return Kind(CORRELATION.Config)


KINDS: Mapping[str, Callable[[], Kind]] = {
    "repair": _repair,
    "victim": _victim,
    "ablation": _ablation,
    "activeness": _activeness,
    "correlation": _correlation,
}
"""The kinds by the names that `launch.cli.define_config` takes."""


def _detectors() -> list[str]:
    from otbr_jax.detectors.registry import DETECTORS

    return [*DETECTORS]


def _tables() -> list[str]:
    from otbr_jax.report.results_tables import TABLES

    return [*TABLES]


CHOICES: Mapping[str, Callable[[], list[str]]] = {"detectors": _detectors, "tables": _tables}
"""The names that flags are chosen from."""
