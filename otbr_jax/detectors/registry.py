"""All detectors: each module of this package with a `DETECTOR` in it is one."""

from __future__ import annotations

import importlib
import pkgutil

from otbr_jax import detectors
from otbr_jax.detectors.detector import Detector
from otbr_jax.errors import InputError


def _discover() -> dict[str, Detector]:
    names = sorted(module.name for module in pkgutil.iter_modules(detectors.__path__))
    others = ("registry", "detect")  # which import all the others
    modules = [importlib.import_module(f"{detectors.__name__}.{name}") for name in names if name not in others]
    return {module.DETECTOR.name: module.DETECTOR for module in modules if hasattr(module, "DETECTOR")}


DETECTORS: dict[str, Detector] = _discover()
"""All detectors by name."""


def detector(name: str) -> Detector:
    """The detector of that name; raises InputError if there is none."""
    if name not in DETECTORS:
        raise InputError(f"detector: expected one of {[*DETECTORS]}, found {name!r}")
    return DETECTORS[name]
