"""What the settings of programs are: their classes, imported where they are wanted, since they bring JAX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from otbr_jax.settings import Setting, describe


class Kind(NamedTuple):
    """Settings of one kind.

    Attributes:
      choose: the class of the settings that a nested dictionary holds.
      variants: dictionaries that choose all there are: by defence, or a single one with an empty name.
    """

    choose: Callable[[Mapping[str, Any]], type[Any]]
    variants: Mapping[str, Mapping[str, Any]] = {"": {}}

    @property
    def types(self) -> list[type[Any]]:
        """The classes that the settings may be of."""
        return [*dict.fromkeys(self.choose(values) for values in self.variants.values())]

    def describe(self, values: Mapping[str, Any]) -> list[Setting]:
        """All settings of the class that `values` choose, with these values."""
        return describe(self.choose(values), values)

    def names(self) -> list[str]:
        """The dotted names of all settings, of whichever class; without groups."""
        every = (each for values in self.variants.values() for each in self.describe(values))
        return [*dict.fromkeys(each.name for each in every if each.words)]


def _repair() -> Kind:
    from otbr_jax.defenses.registry import DEFENSES
    from otbr_jax.studies.repair_config import config_type_of

    return Kind(config_type_of, {name: {"defense": name} for name in DEFENSES})


def _victim() -> Kind:
    from otbr_jax.victims.config import VictimConfig

    return Kind(lambda values: VictimConfig)


def _ablation() -> Kind:
    from otbr_jax.studies.ablation import ABLATION

    return Kind(lambda values: ABLATION.Config)


def _activeness() -> Kind:
    from otbr_jax.studies.activeness import ACTIVENESS

    return Kind(lambda values: ACTIVENESS.Config)


def _correlation() -> Kind:
    from otbr_jax.studies.correlation import CORRELATION

    return Kind(lambda values: CORRELATION.Config)


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
