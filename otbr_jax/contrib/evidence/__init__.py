"""Evidence that one class of a network is the attacker's. One kind a file; see `evidence.Evidence`."""

from otbr_jax.contrib.evidence.evidence import Evidence, Observations, Predictions
from otbr_jax.contrib.evidence.fall import FALL
from otbr_jax.contrib.evidence.patch import PATCH
from otbr_jax.contrib.evidence.perturbation import PERTURBATION

__all__ = ["EVIDENCE", "Evidence", "Observations", "Predictions"]

EVIDENCE: dict[str, Evidence] = {kind.name: kind for kind in (PATCH, PERTURBATION, FALL)}
"""All kinds of evidence by name. To add one, write its file and name it here; settings choose the kinds that count."""
