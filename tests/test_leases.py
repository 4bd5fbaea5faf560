"""Several workers on one bench and in one working directory: nothing is lost, and nothing is done twice."""

import dataclasses
import errno
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import pytest
from tiny_runs import OTBR as CONFIG

from otbr_jax import InputError
from otbr_jax.locks import locked
from otbr_jax.report.rows import append_row, leases_folder, read_rows
from otbr_jax.runs import provenance
from otbr_jax.runs.leases import open_leases
from otbr_jax.runs.store import open_workdir
from otbr_jax.settings import change
from otbr_jax.studies import bench_run
from otbr_jax.studies.bench import Bench, Cell
from otbr_jax.studies.bench_run import run_bench

HOLDS = (
    "import fcntl, sys; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
)
FILLED: Counter[str] = Counter()


@dataclasses.dataclass(frozen=True)
class Quick(Cell):
    """A cell that takes a moment; the one of seed 3 cannot be filled if `variant` says so."""

    def fill(self, root, *, devices):
        FILLED[self.name] += 1
        time.sleep(0.003)
        if self.variant == "fails" and self.config.victim.seed == 3:
            raise InputError("training.learning_rate: expected a finite loss, found nan")
        return {"config": self.settings()}

    def in_words(self, row):
        return "done"


def grid(count, variant=""):
    return Bench("g", tuple(Quick(change(CONFIG, seed=seed), variant=variant) for seed in range(count)))


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """As if there were nothing to commit; nobody waits for long."""
    monkeypatch.setattr(provenance, "_git", lambda *arguments: "" if arguments[0] == "status" else "0" * 40)
    monkeypatch.setattr(bench_run, "LOOK_EVERY", 0.01)
    FILLED.clear()


def work(folder, cells, say=lambda line: None):
    return run_bench(cells, folder / "w", folder / "rows.jsonl", say=say)


def together(workers, *arguments):
    """Workers that have all begun before one of them takes a cell: what each returns or raises."""
    begun = threading.Barrier(workers)

    def one(_):
        said = []

        def say(line):
            said.append(line)
            if len(said) == 1:
                begun.wait()

        try:
            return work(*arguments, say)
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, range(workers)))


def test_workers_share_the_cells(tmp_path):
    cells = grid(30)
    written = together(3, tmp_path, cells)
    assert Counter(row.values["cell"] for row in read_rows(tmp_path / "rows.jsonl")) == Counter(
        cell.name for cell in cells.cells
    )
    assert set(FILLED.values()) == {1}
    assert sum(written) == 30
    assert work(tmp_path, cells) == 0


def test_what_a_killed_worker_had_is_taken_up(tmp_path):
    cells = grid(3)
    lease = leases_folder(tmp_path / "rows.jsonl") / cells.cells[1].id
    lease.parent.mkdir(parents=True)
    other = subprocess.Popen([sys.executable, "-c", HOLDS, lease], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"

    def say(line):
        if "waits for cells that other processes are running: 1" in line:
            other.kill()
            other.communicate()

    assert work(tmp_path, cells, say) == 3
    assert [row.values["cell"] for row in read_rows(tmp_path / "rows.jsonl")] == [
        cells.cells[index].name for index in (0, 2, 1)
    ]


def test_a_cell_that_fails_is_tried_once_by_all_workers_and_again_by_the_next_ones(tmp_path):
    cells = grid(6, "fails")
    ends = together(3, tmp_path, cells)
    assert len(set(ends)) == 1
    assert "1 of 6 cells failed, the first: " in ends[0]
    assert ends[0].endswith("/seed3: training.learning_rate: expected a finite loss, found nan")
    assert set(FILLED.values()) == {1}
    with pytest.raises(InputError, match="1 of 1 cells failed"):
        work(tmp_path, cells)
    assert FILLED[cells.cells[3].name] == 2
    assert len(read_rows(tmp_path / "rows.jsonl")) == 5


def test_workers_go_to_different_victims_first(tmp_path):
    first, same, other = (
        dataclasses.replace(cell, variant=name) for name, cell in zip("abc", grid(3).cells, strict=True)
    )
    same = dataclasses.replace(same, config=first.config)
    leases = open_leases(tmp_path)
    with leases.take((first, same, other)) as one:
        assert one is first
        with leases.take((first, same, other)) as two:
            assert two is other
            with leases.take((first, other)) as none:
                assert none is None


def test_a_row_is_appended_unless_it_is_there(tmp_path):
    file = tmp_path / "rows.jsonl"
    assert append_row(file, {"cell": "a"}, unless=lambda row: row["cell"] == "a")
    assert not append_row(file, {"cell": "a"}, unless=lambda row: row["cell"] == "a")
    with open(file, "a", encoding="utf-8") as half:
        half.write('{"cell": "b')  # by a worker that was killed
    assert append_row(file, {"cell": "c"})
    assert [row.values["cell"] for row in read_rows(file)] == ["a", "c"]


def stage(directory, compute):
    return directory.run(
        "s",
        compute,
        like=lambda: {"a": jax.ShapeDtypeStruct((2,), jnp.float32)},
        config={},
        key=None,
        code="ones",
    )


def test_a_stage_is_computed_by_one_of_those_who_share_a_directory(tmp_path):
    computed, begun = [], threading.Barrier(3)

    def one(index):
        def compute():
            computed.append(index)
            time.sleep(0.05)
            return {"a": jnp.ones(2)}

        begun.wait()
        with open_workdir(tmp_path / "w", subject={"a": 1}, shared=True) as directory:
            return stage(directory, compute)

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(one, range(3)))
    assert len(computed) == 1
    assert sorted(each.resumed for each in found) == [False, True, True]
    assert len({each.digest for each in found}) == 1


def test_whoever_wants_a_directory_alone_gets_it_alone(tmp_path):
    def refused(**options):
        with pytest.raises(InputError, match=r"w is in use by another process \(pid"):
            open_workdir(tmp_path / "w", subject={}, **options).__enter__()

    with open_workdir(tmp_path / "w", subject={}, shared=True), open_workdir(tmp_path / "w", subject={}, shared=True):
        refused()
    with open_workdir(tmp_path / "w", subject={}):
        refused(shared=True)
        refused()


def test_what_another_process_is_writing_stays(tmp_path, caplog):
    with open_workdir(tmp_path / "w", subject={}, shared=True) as directory:
        folder = directory.stages / "s-0123"
        partial = directory.stages / "s-0123.partial"
        partial.mkdir()
        with locked(directory.lock_of(folder), name="workdir"), open_workdir(tmp_path / "w", subject={}, shared=True):
            assert partial.exists()
    with caplog.at_level(logging.WARNING), open_workdir(tmp_path / "w", subject={}, shared=True):
        assert not partial.exists()
    assert "stage 's' is half-written and will be rebuilt" in caplog.text


def test_folders_without_locks_and_that_cannot_be_written(tmp_path, monkeypatch):
    def missing(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--results: expected a file that can be written, found .*rows.jsonl: "):
        append_row(tmp_path / "file" / "rows.jsonl", {})
    with pytest.raises(InputError, match=r"x: expected a directory that can be written, found .*file: "):
        locked(tmp_path / "file" / "lock", name="x").__enter__()
    monkeypatch.setattr("fcntl.flock", missing)
    with pytest.raises(InputError, match=r"workdir: .*w is on a file system without locks: Function not implemented"):
        open_workdir(tmp_path / "w", subject={}).__enter__()
    with pytest.raises(
        InputError, match=r"--results: .*rows.jsonl is on a file system without locks: Function not imp"
    ):
        append_row(tmp_path / "rows.jsonl", {})
