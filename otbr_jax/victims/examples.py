"""Test images to look at, without and with a trigger."""

from __future__ import annotations

import numpy as np

from otbr_jax.attacks.registry import AttackConfig
from otbr_jax.report.gallery import Example
from otbr_jax.report.quality import image_quality
from otbr_jax.victims.evaluation import TestSet


def example_triggers(test: TestSet, attack: AttackConfig, *, name: str, columns: int = 6) -> Example | None:
    """Test images without and with the trigger, and how well it hides in all of them; None without an attack."""
    if attack.name == "none":
        return None
    labels = np.asarray(test.labels)
    chosen = one_per_class(labels, list(np.unique(labels)))[-columns:]
    settings = {key: value for key, value in attack.settings().items() if key not in ("name", "target")}
    return Example(
        name,
        np.asarray(test.clean)[chosen],
        np.asarray(test.triggered)[chosen],
        image_quality(test.clean, test.triggered),
        ", ".join(f"{key} {value}" for key, value in settings.items()),
    )


def one_per_class(labels: np.ndarray, classes: list[int]) -> np.ndarray:
    """Places `[classes]` of the first image of each class in labels `[n]`."""
    return np.array([int(np.argmax(labels == label)) for label in classes], dtype=int)
