"""The values of five tiny runs, array by array, are those that were recorded; what arrays are called is free."""

import json

import golden_runs
import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("goldens")


@pytest.mark.parametrize("name", golden_runs.RUNS)
def test_no_value_has_moved(name, folder):
    golden = json.loads((golden_runs.FOLDER / f"{name}.json").read_text())
    if golden["platform"] != golden_runs.here():
        pytest.skip("recorded on another processor or with other versions")
    found = golden_runs.measured(name, folder / ("own" if name == "own_network" else "victim"))
    moved = {
        f"{stage}/{array}"
        for stage, arrays in golden["stages"].items()
        for array, digest in arrays.items()
        if digest not in found[stage].values()
    }
    assert not moved
