"""Committed rows stay those of their cells, whatever was added to the settings since."""

import dataclasses
import json
import pathlib

import pytest

from otbr_jax.inversion import PenalisedConfig
from otbr_jax.settings import change
from otbr_jax.studies.bench import load_grid

ROOT = pathlib.Path(__file__).parent.parent


def cells_and_rows(name):
    rows = (ROOT / "results" / f"bench_{name}.jsonl").read_text().splitlines()
    return load_grid(ROOT / "configs" / "bench" / f"{name}.py").cells, [json.loads(row) for row in rows]


@pytest.mark.parametrize(("name", "least"), [("cpu", 11), ("otbr_plus", 29)])
def test_committed_rows_are_found(name, least):
    """Some of the rows of `otbr_plus` are older than the settings that its cells have now."""
    cells, rows = cells_and_rows(name)
    assert sum(any(cell.matches(row) for row in rows) for cell in cells) >= least


def test_a_setting_that_a_row_does_not_know_has_to_have_its_default():
    cells, rows = cells_and_rows("otbr_plus")
    cell, row = next((cell, row) for cell in cells for row in rows if cell.matches(row))
    assert "evidence" not in row["config"]["suspicion"]  # it is older than the list of kinds

    def with_detection(**changes):
        detection = dataclasses.replace(cell.config.method.detection, **changes)
        return dataclasses.replace(cell, config=change(cell.config, detection=detection))

    assert with_detection(evidence=("patch", "perturbation", "fall")).matches(row)
    assert not with_detection(evidence=("patch",)).matches(row)
    assert not with_detection(patch=PenalisedConfig(steps=7)).matches(row)
    assert not dataclasses.replace(cell, config=change(cell.config, seed=99)).matches(row)
