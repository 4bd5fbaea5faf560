"""The perturbation of the attacker's class is weaker: evidence of triggers that no small patch imitates."""

from __future__ import annotations

from otbr_jax.contrib.evidence.evidence import Evidence, relative

PERTURBATION = Evidence(
    "perturbation", 0.5, lambda observations: 1 - relative(observations.triggers["perturbation"].size[None])[0]
)
"""How much weaker its perturbation is: `1 - strength / median strength`."""
