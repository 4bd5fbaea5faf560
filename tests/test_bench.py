"""The bench fills its rows once, wherever it is stopped."""

import dataclasses
import json
import pathlib
import runpy

import pytest
from tiny_runs import DEVICES
from tiny_runs import OTBR as CONFIG

from otbr_jax import InputError
from otbr_jax.attacks.registry import ATTACKS, AttackConfig
from otbr_jax.contrib.distill import DistillationConfig
from otbr_jax.data.sources import DataConfig
from otbr_jax.report.results_tables import markdown
from otbr_jax.report.rows import append_row, mend, parse
from otbr_jax.runs import provenance
from otbr_jax.runs.identity import versions
from otbr_jax.settings import change, from_dict
from otbr_jax.studies import bench
from otbr_jax.studies.bench import Bench, Cell, load_grid
from otbr_jax.studies.bench_run import run_bench
from otbr_jax.studies.repair_config import plain_config
from otbr_jax.victims.config import VictimConfig
from otbr_jax.victims.training import TrainingConfig

ROOT = pathlib.Path(__file__).resolve().parent.parent
GRID = Bench(
    "cpu",
    tuple(
        Cell(change(CONFIG, attack=dataclasses.replace(CONFIG.victim.attack, name=name)), recipe="fast")
        for name in ("none", "badnets")
    ),
)


@pytest.fixture(autouse=True)
def committed(monkeypatch):
    """As if there were nothing to commit."""
    monkeypatch.setattr(provenance, "_git", lambda *arguments: "" if arguments[0] == "status" else "0" * 40)


def fake_repair(config, *args, **kwargs):
    """Fails as a run of a victim that cannot be trained does."""
    if config.victim.attack.name == "none":
        raise InputError("training.learning_rate: expected a finite loss, found nan")
    raise KeyboardInterrupt  # reached


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def fill(tmp_path, grid=GRID, say=lambda line: None):
    return run_bench(grid, tmp_path / "w", tmp_path / "rows.jsonl", say=say, devices=DEVICES)


@pytest.mark.slow
def test_rows_are_written_once_and_say_everything(tmp_path, monkeypatch):
    real, calls = bench.repair, []

    def interrupted(*args, **kwargs):
        calls.append(args[0].attack.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(bench, "repair", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path)
    assert [row["attack"] for row in read_rows(tmp_path / "rows.jsonl")] == ["none"]
    said = []
    assert fill(tmp_path, say=said.append) == 1
    assert calls == ["none", "badnets", "badnets"]  # the finished cell is not run again
    assert said[0].startswith("cpu: 1 of 2 cells are in")
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [row["cell"] for row in rows] == [cell.name for cell in GRID.cells]
    assert fill(tmp_path) == 0
    badnets = rows[1]
    assert badnets["cell"] == "digits/vgg7_bn-w8-d1.1.1.1/fast/badnets/otbr/seed0"
    assert badnets["poisoned"] == 129
    assert badnets["train_images"] == 1297
    assert badnets["commit"] == "0" * 40
    assert badnets["training"]["epochs"] == 4
    assert badnets["training"]["images_per_second"] > 0
    assert set(badnets["metrics"]["fused"]) == {"acc", "asr", "ra", "der"}
    assert badnets["trigger"]["psnr"] > 10
    assert {"date", "hardware", "versions", "config", "seconds", "oracle", "choice", "data"} <= set(badnets)
    table = markdown("bench_cpu", parse((tmp_path / "rows.jsonl").read_text(), name="rows.jsonl"))
    assert "badnets" in table.lower()
    assert "badnets" in (tmp_path / "w" / "gallery.html").read_text()
    for folder in (tmp_path / "w" / "digits" / "vgg7_bn-w8-d1.1.1.1" / "cells").iterdir():
        assert (folder / "report.html").exists()


def test_a_cell_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "repair", fake_repair)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path)
    said = []
    with pytest.raises(InputError, match=r"1 of 1 cells failed, the first: .*/none/.*: training.learning_rate"):
        fill(tmp_path, Bench("cpu", GRID.cells[:1]), said.append)
    assert "failed: training.learning_rate: expected a finite loss" in said[1]


@pytest.mark.parametrize(("tail", "kept"), [(b'{"id": "2", "ce', 1), (b'{"id": "2", "cell": "c"}', 2)])
def test_the_half_of_a_row_is_cut_off_and_a_whole_one_kept(tmp_path, tail, kept, caplog):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"id": "1", "cell": "c"}\n' + tail)
    mend(file)
    append_row(file, {"id": "3", "cell": "c"})
    assert [row["id"] for row in read_rows(file)] == [*["1", "2"][:kept], "3"]
    assert ("half-written" in caplog.text) == (kept == 1)


def test_cells_are_told_apart_by_settings_not_by_folders():
    cell = GRID.cells[1]

    def changed(**settings):
        return Cell(change(cell.config, **settings), recipe="fast").id

    assert cell.id == changed()
    moved = dataclasses.replace(cell.config.victim.data, data_dir="/elsewhere")
    assert cell.id == changed(data=moved)
    assert cell.id != changed(seed=1)
    assert cell.id != changed(training=TrainingConfig(epochs=3))
    other = dataclasses.replace(
        cell.config.victim.attack, sig=dataclasses.replace(cell.config.victim.attack.sig, frequency=3.0)
    )
    assert cell.id == changed(attack=other)  # not this cell's attack


def test_a_row_is_of_the_cell_whose_settings_it_holds_and_a_new_setting_has_its_default():
    cell = GRID.cells[1]
    config = json.loads(json.dumps(plain_config(cell.config)))
    row = {"cell": cell.name, "versions": versions(), "config": config}
    assert cell.matches(row)
    assert not GRID.cells[0].matches(row)
    assert not cell.matches(row | {"versions": {"otbr_jax": "0.0.0"}})
    assert not cell.matches(row | {"config": config | {"otbr": config["otbr"] | {"gamma": 0.3}}})
    before = {name: value for name, value in config.items() if name != "distillation"}
    assert cell.matches(row | {"config": before})  # from when there was no distillation
    distilled = change(cell.config, distillation=DistillationConfig(targets="labels"))
    assert not dataclasses.replace(cell, config=distilled).matches(row | {"config": before})


def test_the_grids_of_this_project():
    eight = runpy.run_path(str(ROOT / "configs" / "recipes.py"))["EIGHT"]
    for name, datasets in (("paper", {"cifar10", "gtsrb", "tiny_imagenet"}), ("cpu", {"cifar10", "mnist"})):
        grid = load_grid(ROOT / "configs" / "bench" / f"{name}.py")
        assert grid.name == name
        assert {cell.config.victim.data.name for cell in grid.cells} == datasets
        assert {cell.config.victim.attack.name for cell in grid.cells} == {"none", *eight}
        ids = {cell.id for cell in grid.cells}
        for cell in grid.cells:  # a clean network trained the same way stands beside every victim
            clean = dataclasses.replace(cell, config=change(cell.config, attack=AttackConfig(name="none")))
            assert clean.id in ids
    assert {cell.recipe for cell in load_grid(ROOT / "configs" / "bench" / "recipes.py").cells} == {"published", "fast"}
    assert len(load_grid(ROOT / "configs" / "bench" / "paper.py", only="/wanet/").cells) == 3
    newer = load_grid(ROOT / "configs" / "bench" / "attacks.py").cells
    known = load_grid(ROOT / "configs" / "bench" / "adaptive.py").cells
    assert {cell.config.victim.attack.name for cell in (*newer, *known)} == set(ATTACKS) - set(eight) | {"badnets"}


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "victims").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_the_victims_of_this_project(path):
    get_config = runpy.run_path(str(path))["get_config"]
    for attack in ("none", *ATTACKS):
        published, fast = (
            from_dict(VictimConfig, get_config(argument).to_dict()) for argument in (attack, f"{attack},fast")
        )
        assert published.data.name == path.stem
        assert published.attack.name == attack
        assert published.training.learning_rate == 0.01
        assert fast.training.epochs < published.training.epochs / 5
    with pytest.raises(InputError, match="--config: expected FILE.py:ATTACK or .* found 'x,slow'"):
        get_config("x,slow")


def test_bad_input(tmp_path):
    def bad(text, message, **options):
        (tmp_path / "grid.py").write_text(text)
        with pytest.raises(InputError, match=message):
            load_grid(tmp_path / "grid.py", **options)

    with pytest.raises(InputError, match="--grid: expected a Python file with get_grid"):
        load_grid(tmp_path / "nothing.py")
    bad("1 / 0", r"--grid: .*grid.py cannot be run \(ZeroDivisionError: division by zero\)")
    bad("x = 1", r"--grid: .*grid.py cannot be run \(KeyError: 'get_grid'\)")
    bad("get_grid = lambda: 3", r"expected .*grid.py's get_grid\(\) to return a Bench, found int")
    bad("from otbr_jax.studies.bench import Bench\nget_grid = lambda: Bench('g', ())", "grid g: expected a cell")
    with pytest.raises(InputError, match="--only: expected a part of a cell's name, such as .*found 'nix'"):
        load_grid(ROOT / "configs" / "bench" / "paper.py", only="nix")
    with pytest.raises(InputError, match=r"--note: expected a note on one of \['cifar10', .*, found one on 'x'"):
        load_grid(ROOT / "configs" / "bench" / "paper.py", notes={"x": "y"})
    noted = load_grid(ROOT / "configs" / "bench" / "paper.py", notes={"gtsrb": "y"})
    assert {cell.config.victim.data.note for cell in noted.cells if cell.config.victim.data.name == "gtsrb"} == {"y"}
    with pytest.raises(InputError, match="grid g: expected each cell once, found digits.* twice"):
        Bench("g", (GRID.cells[0], GRID.cells[0]))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "1", "cell": "c"}) + "\n{broken\n")
    with pytest.raises(InputError, match=r"rows.jsonl:2: expected a JSON object, found a broken line"):
        fill(tmp_path)
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "rows.jsonl", tmp_path):
        with pytest.raises(InputError, match="--results: expected a file that can be written"):
            run_bench(GRID, tmp_path / "w", place, say=lambda line: None)
    with pytest.raises(InputError, match="cell: expected data to train a victim on and no model.checkpoint"):
        Cell(change(CONFIG, data=DataConfig("none")))


def test_uncommitted_changes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "_git", lambda *arguments: " M otbr_jax/x.py" if arguments[0] == "status" else "1")
    with pytest.raises(InputError, match="results name a commit: expected otbr_jax/ and configs/ as committed"):
        fill(tmp_path)
    assert not (tmp_path / "rows.jsonl").exists()


def test_outside_a_checkout_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert provenance.provenance()["commit"] is None
