"""Signals, closed pipes and full disks: one line, nothing half-written, and the same command goes on."""

import errno
import os
import pathlib
import signal
import subprocess
import sys
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from otbr_jax import InputError
from otbr_jax.files import write_text, writing
from otbr_jax.paths import local_path
from otbr_jax.report.rows import append_row
from otbr_jax.runs import stopping
from otbr_jax.runs.checkpoints import replace_checkpoint, restore_checkpoint
from otbr_jax.runs.loop import restore_state, rounds
from otbr_jax.runs.store import open_workdir

ROOT = pathlib.Path(__file__).parent.parent
WAITS = "import sys; sys.argv = ['-m']; import launch, time; {more}; print('ready', flush=True); time.sleep(60)"
SAVES = (
    "import types; m = types.ModuleType('s'); sys.modules['otbr_jax.runs.stopping'] = m; "
    "m.request = lambda wait: print('saved', wait, flush=True)"
)


@pytest.mark.parametrize(("sent", "status", "said"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
@pytest.mark.parametrize("more", ["pass", SAVES])
def test_a_signal_ends_a_program_with_one_line(sent, status, said, more):
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS.format(more=more)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, sent))
    out, error = process.communicate(timeout=30)
    assert process.returncode == status
    assert error == f"\nerror: {said}; the same command goes on from what is finished\n"
    assert out == ("" if more == "pass" else "saved 8.0\n")


def test_a_long_computation_saves_what_it_has_when_it_is_asked(tmp_path, monkeypatch):
    for name in ("_requested", "_saving", "_saved"):
        monkeypatch.setattr(stopping, name, threading.Event())
    monkeypatch.setattr(stopping, "saved", lambda: None)  # which waits for the process to end

    def body(state):
        if state == 3:
            stopping.request(wait=0)
        return state + 1, {}

    seen = []
    rounds(
        jnp.int32(0),
        lambda state: (seen.append(int(state)), body(state))[1],
        done=lambda state: bool(state >= 6),
        count=int,
        progress=tmp_path / "progress",
        save_every=1000,
    )
    assert int(restore_state(tmp_path / "progress", jnp.int32(0))) >= 4


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_as_orbax_says_it(*_, **__):
    raise ValueError("RESOURCE_EXHAUSTED: Error writing file: No space left on device")


@pytest.mark.parametrize("fails", [full, full_as_orbax_says_it])
def test_a_full_disk_ends_in_one_line_and_leaves_nothing(tmp_path, monkeypatch, fails):
    old = {"a": np.arange(3.0)}
    replace_checkpoint(tmp_path / "c", old)
    write_text(tmp_path / "t.json", "old")
    (tmp_path / "t.json.partial-notes").write_text("somebody's")
    monkeypatch.setattr("otbr_jax.runs.checkpoints.save_checkpoint", fails)
    monkeypatch.setattr("otbr_jax.runs.store.save_together", fails)
    monkeypatch.setattr("otbr_jax.files.os.fsync", fails)
    for write in (
        lambda: replace_checkpoint(tmp_path / "c", {"a": np.ones(3)}, name="repaired"),
        lambda: write_text(tmp_path / "t.json", "new"),
    ):
        with pytest.raises(
            InputError, match=r"cannot write .*(c|t.json) \(No space left on device; free some"
        ) as error:
            write()
        assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "t.json", "t.json.partial-notes"]
    np.testing.assert_array_equal(restore_checkpoint(tmp_path / "c", old)["a"], old["a"])
    assert (tmp_path / "t.json").read_text() == "old"


def test_a_stage_that_cannot_be_written_leaves_the_others(tmp_path, monkeypatch):
    settings = {"like": lambda: {"a": np.zeros(2)}, "config": {}, "key": None, "code": "otbr_jax.files"}
    with open_workdir(tmp_path / "w", subject={"a": 1}) as workdir:
        workdir.run("first", lambda: {"a": np.ones(2)}, **settings)
        with monkeypatch.context() as context:
            context.setattr("otbr_jax.runs.store.save_together", full_as_orbax_says_it)
            with pytest.raises(InputError, match=r"workdir: stage 'second': cannot write .*second-.* \(No space left"):
                workdir.run("second", lambda: {"a": np.ones(2)}, **settings)
        assert [path.name.split("-")[0] for path in workdir.stages.iterdir()] == ["first"]
        assert workdir.run("first", lambda: pytest.fail("computed again"), **settings).resumed
        assert not workdir.run("second", lambda: {"a": np.ones(2)}, **settings).resumed


def test_no_half_of_a_row_stays(tmp_path, monkeypatch):
    append_row(tmp_path / "rows.jsonl", {"a": 1})
    monkeypatch.setattr("otbr_jax.report.rows.os.fsync", full)
    with pytest.raises(InputError, match=r"rows.jsonl: No space left on device"):
        append_row(tmp_path / "rows.jsonl", {"a": 2})
    assert (tmp_path / "rows.jsonl").read_text() == '{"a": 1}\n'


def test_an_interrupt_while_writing_leaves_nothing(tmp_path):
    def interrupted():
        with writing(tmp_path / "a") as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_addresses_are_no_local_paths(tmp_path):
    for address in ("gs://bucket/run", "s3://bucket/run", "hdfs:///run", "https://host/victim.pt"):
        with pytest.raises(InputError, match=r"workdir: expected a local path, found .*; copy from or to") as error:
            open_workdir(address, subject={}).__enter__()
        assert address in str(error.value)
    assert local_path("~/x", name="a") == pathlib.Path.home() / "x"
    assert local_path(f"file://{tmp_path}", name="a") == tmp_path
    assert local_path("runs/a:b", name="a") == pathlib.Path.cwd() / "runs/a:b"
