"""The patch of the attacker's class covers less of the image than those of other classes (Neural Cleanse)."""

from __future__ import annotations

from otbr_jax.contrib.evidence.evidence import Evidence, relative

PATCH = Evidence("patch", 1.0, lambda observations: 1 - relative(observations.triggers["patch"].size[None])[0])
"""How much smaller its patch is: `1 - size / median size`."""
