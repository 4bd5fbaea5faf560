"""Families of triggers that a defender searches: what a trigger can be. One file each; see `family.TriggerFamily`."""

from otbr_jax.triggers.family import TriggerFamily
from otbr_jax.triggers.patch import PATCH
from otbr_jax.triggers.perturbation import PERTURBATION

__all__ = ["FAMILIES", "TriggerFamily"]

FAMILIES: dict[str, TriggerFamily] = {family.name: family for family in (PATCH, PERTURBATION)}
"""All families by name. For one more: its file and its name here; search, detection and repair loop over them."""
