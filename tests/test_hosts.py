"""Several processes that compute one run: they find what one finds, one of them writes, and all end together."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from launch import hosts as shell
from otbr_jax import InputError
from otbr_jax.runs import hosts
from otbr_jax.runs.checkpoints import restore_checkpoint

ROOT = pathlib.Path(__file__).parent.parent
TINY = (
    "--config=configs/otbr.py",
    "--config.model.width=4",
    "--config.training.epochs=1",
    "--config.training.batch_size=32",
    "--config.data.train_images=320",
    "--config.otbr.unlearning.steps=2",
    "--config.otbr.unlearning.batch_size=64",
    "--config.sweep.gamma=()",
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(workdir, count, own=lambda index: []):
    """So many processes of one run; each is shown one CPU device."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    together = [f"--coordinator=localhost:{free_port()}", f"--num_processes={count}"] if count > 1 else []
    return [
        subprocess.Popen(
            [sys.executable, "-m", "launch.repair", *TINY, f"--workdir={workdir}", *own(index), *together]
            + ([f"--process_id={index}"] if together else []),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def ended(processes):
    """`(status, standard output, standard error)` of each."""
    found = [process.communicate(timeout=600) for process in processes]
    return [(process.returncode, *said) for process, said in zip(processes, found, strict=True)]


@pytest.mark.slow
def test_two_processes_find_what_one_finds_and_end_together(tmp_path):
    ((status, _, error),) = ended(start(tmp_path / "one", 1))
    assert status == 0, error
    processes = start(tmp_path / "two", 2)
    until = time.monotonic() + 300
    while not any((tmp_path / "two").glob("stages/victim-*/provenance.json")):
        assert time.monotonic() < until
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGKILL)
    (first, out, error), (second, *_) = ended(processes)
    assert (first, second) == (1, -signal.SIGKILL)
    assert out == ""
    assert error.startswith("error: process 0 of 2: another process has ended")
    assert "the same command on every host goes on" in error
    assert error.count("\n") == 1

    (first, out, error), (second, quiet, silent) = ended(start(tmp_path / "two", 2))
    assert (first, second, error, quiet, silent) == (0, 0, "", "", "")
    assert "repaired (after fusion)" in out
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert two["stages"]["victim"]["resumed"]
    for name, row in one["metrics"].items():
        for metric, value in row.items():
            assert two["metrics"][name][metric] == pytest.approx(value, abs=0.02)
    # All processes write a stage's arrays, one of them its manifest.
    (arrays,) = (tmp_path / "two").glob("stages/unlearned-*/arrays")
    assert len([*arrays.glob("ocdbt.process_*")]) == 2
    weights = [*(tmp_path / "two" / "repaired").rglob("*")]
    assert weights
    assert not [*(tmp_path / "two").rglob("*.partial*")]


@pytest.mark.slow
def test_processes_with_other_settings_are_refused(tmp_path):
    found = ended(start(tmp_path / "w", 2, own=lambda index: [f"--config.seed={index}"]))
    for index, (status, out, error) in enumerate(found):
        assert (status, out) == (2, "")
        assert error == (
            f"error: process {index} of 2: --config: expected the same settings and flags in all 2 processes, found "
            "others in process 1 than in process 0\n"
        )
    assert not (tmp_path / "w").exists()


def test_nobody_at_the_coordinators_address(monkeypatch):
    monkeypatch.setattr(shell, "WAIT", 1)
    port = free_port()
    with pytest.raises(InputError, match=rf"--coordinator: nobody answers at localhost:{port} within 1 s .* process 0"):
        shell._await_coordinator(f"localhost:{port}")
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"--coordinator: port {port} of this host cannot be used"):
            shell._check_port(f"localhost:{port}")


class Given:
    """A flag's value."""

    def __init__(self, value):
        self.value = value


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("", 1, None, 0), "--coordinator: expected HOST:PORT of process 0 beside --process_id, found none"),
        (("here", 0, 2, 0), "--coordinator: expected HOST:PORT, or auto, found 'here'"),
        (("here:1", None, 2, 0), "--process_id: expected a whole number beside --coordinator, found none"),
        (("here:1", 0, None, 0), "--num_processes: expected a whole number beside --coordinator, found none"),
        (("here:1", 2, 2, 0), "--process_id: expected 0 to 1, found 2"),
        (("here:1", 0, 0, 0), "--num_processes: expected at least 1, found 0"),
    ],
)
def test_flags_that_do_not_fit_together(flags, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        shell.Hosts(*map(Given, flags)).are_wanted()


def test_alone_nothing_is_asked(tmp_path):
    assert not shell.Hosts(*map(Given, ("", None, None, 0))).are_wanted()
    assert shell.Hosts(*map(Given, ("auto", None, None, 0))).are_wanted()
    assert hosts.is_first()
    assert not hosts.are_many()
    assert hosts.first(lambda: [1]) == [1]
    hosts.agree("abc", name="x", what="y")
    hosts.wait_for_all("here")
    with pytest.raises(InputError, match="^refused$"):
        hosts.first(lambda: (_ for _ in ()).throw(InputError("refused")))


def test_a_folder_that_is_not_shared(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "PATIENCE", 0.1)
    with pytest.raises(InputError, match="workdir: expected a folder that all hosts share, found nothing of process 0"):
        hosts.check_shared(tmp_path / "workdir.json", name="workdir")
    (tmp_path / "workdir.json").write_text("{}")
    hosts.check_shared(tmp_path / "workdir.json", name="workdir")


def test_restored_arrays_lie_on_the_host(tmp_path):
    from otbr_jax.runs.checkpoints import save_together

    save_together(tmp_path / "c", {"a": np.arange(3.0)})
    np.testing.assert_array_equal(restore_checkpoint(tmp_path / "c", {"a": np.zeros(3)})["a"], np.arange(3.0))
