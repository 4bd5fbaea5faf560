"""Families of triggers that a defender searches: what a trigger can be. One file each; see `family.TriggerFamily`."""

from otbr_jax.triggers.additive import ADDITIVE, LOW_FREQUENCY
from otbr_jax.triggers.bank import Bank
from otbr_jax.triggers.family import TriggerFamily
from otbr_jax.triggers.generator import GENERATOR
from otbr_jax.triggers.patch import PATCH
from otbr_jax.triggers.warp import WARP
from otbr_jax.triggers.wave import WAVE

__all__ = ["FAMILIES", "Bank", "TriggerFamily"]

FAMILIES: dict[str, TriggerFamily] = {
    family.name: family for family in (PATCH, ADDITIVE, LOW_FREQUENCY, WAVE, WARP, GENERATOR)
}
"""All families by name. For one more: its file and its name here; search, detection and repair loop over them."""
