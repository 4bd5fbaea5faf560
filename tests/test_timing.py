"""Where time goes, what is shown meanwhile, and where launchers keep what they compile."""

import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from launching import launch

from launch import compiled
from otbr_jax.report import page
from otbr_jax.runs import progress, timing


@pytest.mark.parametrize("seed", range(20))
def test_what_intervals_cover_counts_once(seed):
    rng = np.random.default_rng(seed)
    intervals = [(begin, begin + rng.integers(9)) for begin in rng.integers(30, size=seed)]
    assert timing.union_length(intervals) == len({second for begin, end in intervals for second in range(begin, end)})


def test_compiling_is_heard_while_it_is_listened_to_and_adds_up():
    began = time.perf_counter()
    with timing.compiling() as seconds:
        assert seconds() == 0
        program = jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x))
        program(jnp.ones((7, 7)))
        first = seconds()
        program(jnp.ones((7, 7)))
        assert seconds() == first
    jax.jit(lambda x: jnp.tan(x))(jnp.ones(3))
    assert 0 < seconds() == first <= time.perf_counter() - began
    parts = timing.split(10.0, compiling=3.0, transfer=1.0)
    assert (sum(parts.values()), parts["run"]) == (10.0, 6.0)


def test_every_stage_says_where_its_seconds_went(otbr_run):
    _, result, summary = otbr_run
    for name, stage in result.stages.items():
        assert set(stage.spent) == set(timing.PARTS)
        assert sum(value for part, value in stage.spent.items() if part != "disk") == pytest.approx(
            stage.seconds, abs=1e-3
        )
        assert stage.spent == stage.provenance["notes"]["spent"] == summary["stages"][name]["spent"]
    html = (result.workdir / "report.html").read_text()
    assert "Where the time went" in html
    assert "ui.perfetto.dev" not in html


def test_a_line_sums_up_all_stages():
    stages = {"a": {"spent": {"compile": 1.0, "disk": 0.25}}, "b": {"spent": {"run": 2.0, "disk": 0.5}}, "c": {}}
    table = page._times({"stages": stages})
    assert [list(row) for row in table.rows] == [
        ["a", "1.00", "0.00", "0.00", "0.25"],
        ["b", "0.00", "2.00", "0.00", "0.50"],
        ["all stages", "1.00", "2.00", "0.00", "0.75"],
    ]
    assert page._times({}) is page._times({"stages": {"c": {}}}) is None


def test_a_profile_is_a_trace_where_it_is_wanted(tmp_path):
    with timing.profile(tmp_path / "no", wanted=False) as folder:
        assert folder is None
    assert not (tmp_path / "no").exists()
    with timing.profile(tmp_path) as folder:
        jax.block_until_ready(jnp.ones(3) + 1)
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".pb", ".gz"}


@pytest.mark.parametrize(("bars", "callback"), [("", False), ("parts", True)])
def test_only_bars_that_count_parts_call_back(bars, callback, monkeypatch):
    monkeypatch.setenv("OTBR_JAX_BARS", bars)
    with progress.step_progress("a step", 2, unit="part") as report:
        assert (report is not None) == callback


CHILD = """
import json, sys, jax
import otbr_jax, otbr_jax.runs.run
before = jax.config.jax_compilation_cache_dir
from launch import compiled
compiled.keep_programs()
kept = jax.config.jax_compilation_cache_dir
jax.jit(lambda x: sum(jax.numpy.sin(x + i) for i in range(20)))(jax.numpy.ones(5))
seconds = jax.config.jax_persistent_cache_min_compile_time_secs
print(json.dumps([before, kept, seconds, jax.config.jax_compilation_cache_max_size]))
"""


def child(**environment):
    """What a fresh process says of its settings, and its standard error."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env=own | environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout), done.stderr


def test_launchers_keep_programs_and_the_library_does_not(tmp_path):
    home = {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    for _ in range(2):  # the second one reads what the first one wrote
        (before, kept, seconds, most), said = child(**home)
        assert (before, seconds, most, said) == (None, 0, compiled.MOST_BYTES, "")
        assert pathlib.Path(kept).parent == tmp_path / "otbr_jax" / "compiled"
        assert list(pathlib.Path(kept).glob("jit*-cache"))


def test_a_folder_of_ones_own_wins_and_one_that_cannot_be_made_ends_nothing(tmp_path):
    own = str(tmp_path / "own")
    assert child(JAX_COMPILATION_CACHE_DIR=own)[0][:3] == [own, own, compiled.WORTHWHILE]
    (tmp_path / "file").touch()
    (_, kept, _, _), said = child(XDG_CACHE_HOME=str(tmp_path / "file"), MPLCONFIGDIR=str(tmp_path))
    assert (kept, said) == (None, "")


@pytest.mark.parametrize("program", ["repair", "train_victim"])
def test_profile_is_a_flag(program):
    assert "--profile" in launch(program, "--help").stdout
