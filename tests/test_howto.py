"""The how-to pages: their code is run as it stands, as the one file that a page says it takes."""

import importlib
import pathlib
import re
import sys

import jax
import numpy as np
import pytest

import otbr_jax
from otbr_jax import Batch, defenses
from otbr_jax.defenses import registry

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
