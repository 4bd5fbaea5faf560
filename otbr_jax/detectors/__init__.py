"""Evidence that a network is backdoored, and for which class. One file each; see `detector.Detector`."""

from otbr_jax.detectors.detector import Answers, Detector, Observed
from otbr_jax.detectors.fall import FALL
from otbr_jax.detectors.patch import PATCH
from otbr_jax.detectors.perturbation import PERTURBATION

__all__ = ["DETECTORS", "Answers", "Detector", "Observed"]

DETECTORS: dict[str, Detector] = {detector.name: detector for detector in (PATCH, PERTURBATION, FALL)}
"""All detectors by name. For one more: its file and its name here; settings say which are asked."""
