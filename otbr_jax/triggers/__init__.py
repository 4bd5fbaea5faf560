"""Families of triggers that a defender inverts: what a trigger can be. One file each; see `family.TriggerFamily`."""

from collections.abc import Callable

from otbr_jax.triggers.additive import ADDITIVE, LOW_FREQUENCY, perturbation
from otbr_jax.triggers.family import Trigger, TriggerFamily
from otbr_jax.triggers.generator import GENERATOR
from otbr_jax.triggers.patch import PATCH, penalised_patch
from otbr_jax.triggers.switch import FamilySwitch
from otbr_jax.triggers.warp import WARP
from otbr_jax.triggers.wave import WAVE

__all__ = ["FAMILIES", "PENALISED", "FamilySwitch", "Trigger", "TriggerFamily"]

FAMILIES: dict[str, TriggerFamily] = {
    family.name: family for family in (PATCH, ADDITIVE, LOW_FREQUENCY, WAVE, WARP, GENERATOR)
}
"""Families with a budget, by name. For one more: its file and its name here; inversion and repair loop over them."""

PENALISED: dict[str, Callable[[float], TriggerFamily]] = {"patch": penalised_patch, "perturbation": perturbation}
"""Families without a budget, whose size `Penalised` keeps small: `{name: learning rate -> family}`."""
