"""Every notebook in colabs/ runs from top to bottom."""

import os
import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Without the tests' own XLA flags: eight slow devices.
FULL_SPEED = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
WANTED = {"correlation": "random - poison", "tsbd": "repaired (after fine-tuning)"}
NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path):
    notebook = nbformat.read(path, as_version=4)
    assert len(notebook.cells) <= 15
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(ROOT)}}).execute(env=FULL_SPEED)
    printed = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    wanted = WANTED.get(path.stem, "repaired (after fusion)")
    assert any(wanted in output.get("text", "") for output in printed)
    assert sum("image/png" in output.get("data", {}) for output in printed) >= (2 if path.stem == "correlation" else 3)
