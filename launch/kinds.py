"""What the settings of programs are: their classes, imported where they are wanted, since they bring JAX."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from otbr_jax.settings import Setting, describe


class Kind(NamedTuple):
    """The classes that settings of one kind may be of.

    Attributes:
      types: all of them.
      choose: which of them a nested dictionary of settings is about.
    """

    types: Sequence[type[Any]]
    choose: Callable[[Mapping[str, Any]], type[Any]]

    def variants(self) -> Iterator[tuple[str, list[Setting]]]:
        """All settings of each class, with the defence that it is about, or an empty text."""
        for each in self.types:
            found = describe(each)
            yield next((one.default for one in found if one.name == "defense"), ""), found

    def names(self) -> list[str]:
        """The dotted names of all settings, of whichever class; without groups."""
        return [*dict.fromkeys(one.name for _, settings in self.variants() for one in settings if one.words)]


def _repair() -> Kind:
    from otbr_jax.studies.repair_config import config_type_of, repair_config_types

    return Kind(repair_config_types(), config_type_of)


def _victim() -> Kind:
    from otbr_jax.victims.config import VictimConfig

    return _single(VictimConfig)


def _ablation() -> Kind:
    from otbr_jax.studies.ablation import ABLATION

    return _single(ABLATION.Config)


def _activeness() -> Kind:
    from otbr_jax.studies.activeness import ACTIVENESS

    return _single(ACTIVENESS.Config)


def _correlation() -> Kind:
    from otbr_jax.studies.correlation import CORRELATION

    return _single(CORRELATION.Config)


def _single(config_type: type[Any]) -> Kind:
    return Kind((config_type,), lambda values: config_type)


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
