"""The how-to pages: their code is run as it stands, as the one file that a page says it takes."""

import importlib
import importlib.util
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import otbr_jax
from otbr_jax import Batch, attacks, defenses, detectors
from otbr_jax.attacks import poisoning
from otbr_jax.attacks import registry as attack_registry
from otbr_jax.defenses import registry
from otbr_jax.detectors import registry as detector_registry

PAGES = pathlib.Path(__file__).resolve().parent.parent / "docs" / "howto"


def blocks(page):
    """The Python of a page, block by block."""
    return re.findall(r"^```python\n(.*?)^```", (PAGES / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def house(tmp_path, monkeypatch):
    """`(package, file name, text)` -> None: puts a file into a package of the library, for this test."""

    def put(package, name, text):
        folder = tmp_path / package.__name__
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
        if str(folder) not in package.__path__:
            monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{name}", raising=False)

    return put


@pytest.fixture
def clean():
    """20 images of the tiny network's shape, two of each class."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    return Batch(images, np.arange(40) % 10)


def test_the_code_of_readme(moved, capsys):
    network, _, variables, _ = moved
    (code,) = re.findall(r"^```python\n(.*?)^```", (PAGES.parent.parent / "README.md").read_text(), re.S | re.M)
    names = {"apply": network.apply, "apply_train": network.apply_train, "variables": variables}
    exec(code, names)
    assert re.fullmatch(r"(True|False) (\d|None) \d+ of \d+ channels pruned\n", capsys.readouterr().out)
    assert jax.tree.structure(names["repaired"]) == jax.tree.structure(variables)


def test_a_defence_is_one_file(house, monkeypatch, moved, clean):
    network, _, variables, graph = moved
    pruned, gentle, use = blocks("add_a_defence.md")
    for name, text in (("pruned", pruned), ("gentle", gentle)):
        house(defenses, name, text)
    monkeypatch.setattr(registry, "DEFENSES", registry._found())
    found = otbr_jax.defend("pruned", network, variables, key=jax.random.key(0), graph=graph)
    assert re.fullmatch(r"\d+ of \d+ neurons pruned", found.outcome.done)
    names = {"otbr_jax": otbr_jax, "jax": jax, "network": network, "variables": variables, "clean": clean}
    exec(use, names)
    assert names["found"].outcome.done == "all weights fine-tuned, 10 epochs"
    with pytest.raises(otbr_jax.InputError, match="clean: expected clean images and labels, which 'gentle' needs"):
        otbr_jax.defend("gentle", network, variables, key=jax.random.key(0))


def test_a_detector_is_one_file(house, monkeypatch, moved):
    network, _, variables, _ = moved
    code, use = blocks("add_a_detector.md")
    house(detectors, "noise_answers", code)
    monkeypatch.setattr(detector_registry, "DETECTORS", detector_registry._found())
    names = {"otbr_jax": otbr_jax, "jax": jax, "network": network, "variables": variables}
    exec(use, names)
    found = names["verdict"]
    np.testing.assert_allclose(sum(found.scores), 1, rtol=1e-6)
    assert found.score == max(found.scores) == found.scores[found.suspect]
    assert found.backdoored == (found.score >= 0.9)


def test_an_attack_is_one_file(house, clean, monkeypatch):
    (code,) = blocks("add_an_attack.md")
    house(attacks, "blinds", code)
    # A copy of the registry: others keep the classes that they know.
    spec = importlib.util.spec_from_file_location("attacks_again", attack_registry.__file__)
    own = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, own)
    spec.loader.exec_module(own)
    config = own.AttackConfig(name="blinds", poisoning_ratio=0.25)
    assert config.settings()["strength"] == 0.5
    labels, put = jnp.asarray(clean.labels), own.trigger(config, {})
    images = jnp.asarray(clean.images)
    poisoned = poisoning.poison(images, labels, put, key=jax.random.key(0), config=config, num_classes=10)
    chosen = np.flatnonzero(poisoned.poisoned)
    assert len(chosen) == 10
    assert not np.any(poisoned.labels[chosen])
    for image in chosen:
        rows = np.asarray(clean.images[image], float)
        np.testing.assert_array_equal(poisoned.images[image][1::2], rows[1::2])
        np.testing.assert_array_equal(poisoned.images[image][::2], np.round(rows[::2] * 0.5))


def test_a_map_of_ones_own(small, synchronised):
    network, variables, graph = small
    mapped, sharded = blocks("your_own_map.md")
    names = {"network": synchronised, "variables": variables, "graph": graph}
    exec(mapped, names)
    first = names["repaired"]
    names["network"] = network
    exec(sharded, names)
    again = names["repaired"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), first, again)
