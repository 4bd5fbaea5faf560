"""The code of docs/extending.md is what it says: a defence and a detector in one file each."""

import pathlib
import re

import jax
import numpy as np

from otbr_jax import defend, detect
from otbr_jax.defenses.registry import DEFENSES
from otbr_jax.detectors.registry import DETECTORS

PAGE = (pathlib.Path(__file__).resolve().parent.parent / "docs" / "extending.md").read_text()


def code_of(section):
    """The first piece of code of a section, run as a module."""
    names = {"__name__": "extending"}
    exec(re.search(rf"## {section}\n.*?```python\n(.*?)```", PAGE, re.S)[1], names)
    return names


def test_the_defence_of_the_page(moved, monkeypatch):
    network, _, variables, graph = moved
    defense = code_of("A defence")["DEFENSE"]
    monkeypatch.setitem(DEFENSES, defense.name, defense)
    found = defend("pruned", network, variables, key=jax.random.key(0), graph=graph)
    assert found.outcome.neurons["pruned"] == found.outcome.neurons["scored"] // 10


def test_the_detector_of_the_page(moved, monkeypatch):
    network, _, variables, graph = moved
    detector = code_of("A detector")["DETECTOR"]
    monkeypatch.setitem(DETECTORS, detector.name, detector)
    found = detect("noise_answers", network, variables, key=jax.random.key(0), graph=graph)
    np.testing.assert_allclose(sum(found.scores), 1, rtol=1e-6)
    assert found.score == max(found.scores) == found.scores[found.suspect]
    assert found.backdoored == (found.score >= 0.9)
