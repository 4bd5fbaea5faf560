"""Trigger inversion: finds triggers that turn images into a class, and how small they can be. Pure functions.

`descend` is the loop. An aim is the objective, such as a minimal size. `invert_from` inverts triggers of a family from
given starts; `invert_triggers`, `minimal_triggers` and `invert_classes` choose starts and classes.
"""

from otbr_jax.inversion.aims import Aim, Penalised, Schedule, Smallest, Within
from otbr_jax.inversion.descent import Descent, descend
from otbr_jax.inversion.inversion import InvertedTriggers, invert_from, invert_triggers
from otbr_jax.inversion.minimal import InversionConfig, MinimalTriggers, ScreenedClasses, minimal_triggers
from otbr_jax.inversion.penalised import InversionConfigs, PenalisedConfig, invert_classes
from otbr_jax.inversion.success import success_rate
from otbr_jax.inversion.trigger import InvertedTrigger, invert

__all__ = [
    "Aim",
    "Descent",
    "InversionConfig",
    "InversionConfigs",
    "InvertedTrigger",
    "InvertedTriggers",
    "MinimalTriggers",
    "Penalised",
    "PenalisedConfig",
    "Schedule",
    "ScreenedClasses",
    "Smallest",
    "Within",
    "descend",
    "invert",
    "invert_classes",
    "invert_from",
    "invert_triggers",
    "minimal_triggers",
    "success_rate",
]
