"""Evidence that one class of a network is the attacker's. One kind a file; see `evidence.Evidence`."""

from otbr_jax.contrib.evidence.evidence import Answers, Evidence, Observed
from otbr_jax.contrib.evidence.fall import FALL
from otbr_jax.contrib.evidence.patch import PATCH
from otbr_jax.contrib.evidence.perturbation import PERTURBATION

__all__ = ["EVIDENCE", "Answers", "Evidence", "Observed"]

EVIDENCE: dict[str, Evidence] = {kind.name: kind for kind in (PATCH, PERTURBATION, FALL)}
"""All kinds of evidence by name. For one more: its file and its name here; settings say which are asked for."""
