"""Workers that share a bench and are killed at random moments: every cell has one row, and nobody does another's work.

    python -m benchmarks.leases --workers=4 --kills=30
    python -m benchmarks.leases --workers=2 --kills=3 --grid=repairs

Starts `launch.bench` several times with the same flags. At random moments it kills a random one of those at work and
starts another in its place, until that many were killed; then all come to their end. Where the cells are filled
earlier, it begins again with an empty file. A cell of the grid `quick` sleeps, after a stage that five cells share;
those of `repairs` are real repairs by CLP, two of each of two tiny victims. Appends a row to results/leases.jsonl.
"""

import argparse
import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from typing import NamedTuple

from otbr_jax.report.rows import append_row
from otbr_jax.runs.provenance import ROOT, provenance

RESULTS = ROOT / "results" / "leases.jsonl"
LOGGED = """
import dataclasses, os, random, time
import jax, numpy as np
from configs.bench.disarm import default_victim
from otbr_jax.runs.store import open_workdir
from otbr_jax.studies.bench import Cell, Bench
from otbr_jax.studies.repair_config import repaired_by
from otbr_jax.settings import change

def note(what, subject):
    log = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, f"{{what}} {{os.getpid()}} {{subject}}\\n".encode())
    os.close(log)

class Logged(Cell):
    def fill(self, root, *, devices):
        note("begin", self.name)
        row = self.filled(root, devices)
        note("end", self.name)
        return row

def config(seed):
    cell = default_victim(0)
    return change(cell.config,
        seed=seed,
        model=dataclasses.replace(cell.config.victim.model, width=4),
        data=dataclasses.replace(cell.config.victim.data, train_images=640),
        training=dataclasses.replace(cell.config.victim.training, epochs=4),
    )
"""
QUICK = """
class Quick(Logged):
    @property
    def victim(self):
        return f"stage{self.config.victim.seed // 5}"

    def filled(self, root, devices):
        def compute():
            note("begin", self.victim)
            time.sleep(random.uniform(0, 0.5))
            note("end", self.victim)
            return {"a": np.arange(1000.0)}

        with open_workdir(root / "quick", subject={}, shared=True) as directory:
            like = lambda: {"a": jax.ShapeDtypeStruct((1000,), float)}
            directory.run(self.victim, compute, like=like, config={}, key=None, code="quick")
        time.sleep(random.expovariate(10))
        return {"config": self.settings()}

    def in_words(self, row):
        return "done"

def get_grid():
    return Bench("leases", tuple(Quick(config(seed)) for seed in range(200)))
"""
REPAIRS = """
class Repaired(Logged):
    def filled(self, root, devices):
        return Cell.fill(self, root, devices=devices)

def get_grid():
    both = [(seed, number) for seed in (0, 1) for number in (0, 1)]
    configs = [dataclasses.replace(repaired_by("clp", config(seed)), repetition=number) for seed, number in both]
    return Bench("leases", tuple(Repaired(each) for each in configs))
"""
GRIDS = {"quick": QUICK, "repairs": REPAIRS}


class Told(NamedTuple):
    """What a log says: how often each subject was finished, and what no two workers should have done.

    Attributes:
      finished: times by subject, a cell or a stage.
      at_once: how often a worker began what another had begun and not finished, and was not killed.
      again: how often a worker began what another had finished, and was not killed before it was kept.
      interrupted: how many cells and stages a killed worker had begun and not finished.
    """

    finished: Counter[str]
    at_once: int
    again: int
    interrupted: int


def read_log(lines: list[str], killed: set[int]) -> Told:
    """Reads which worker was at what; one that was killed may have left anything to the others."""
    events = defaultdict(list)
    for line in lines:
        what, process, subject = line.split(" ", 2)
        events[subject].append((what, int(process)))
    finished: Counter[str] = Counter()
    at_once = again = interrupted = 0
    for subject, happened in events.items():
        for (before, earlier), (what, _) in itertools.pairwise(happened):
            interrupted += (before, what) == ("begin", "begin")
            if what == "begin" and earlier not in killed:
                at_once += before == "begin"
                again += before == "end"
        finished[subject] = sum(what == "end" for what, _ in happened)
    return Told(finished, at_once, again, interrupted)


class Workers:
    """Processes that fill the same file of results."""

    def __init__(self, count: int, folder: pathlib.Path, cache: pathlib.Path) -> None:
        self.command = ["launch.bench", f"--grid={folder}/grid.py", f"--workdir={folder}/work"]
        self.command.append(f"--results={folder}/rows.jsonl")
        self.environment = {**os.environ, "TQDM_DISABLE": "1", "JAX_COMPILATION_CACHE_DIR": str(cache)}
        self.said = open(folder / "said.txt", "ab")  # noqa: SIM115
        self.killed: set[int] = set()
        self.others: Counter[int] = Counter()
        self.running = [self.start() for _ in range(count)]

    def start(self) -> subprocess.Popen[bytes]:
        """One more."""
        return subprocess.Popen(
            [sys.executable, "-m", *self.command],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=self.said,
        )

    def look(self) -> bool:
        """Whether any still runs; those that have come to their end are let go."""
        for worker in [worker for worker in self.running if worker.poll() is not None]:
            self.running.remove(worker)
            self.others[worker.returncode] += worker.returncode != 0
        return bool(self.running)

    def kill_one(self, log: pathlib.Path, rng: random.Random) -> None:
        """Kills one at random of those that the log knows, and starts another in its place."""
        known = {int(line.split()[1]) for line in log.read_text().splitlines()} if log.exists() else set()
        at_work = [worker for worker in self.running if worker.pid in known]
        if not at_work:
            return
        worker = rng.choice(at_work)
        worker.send_signal(signal.SIGKILL)
        if worker.wait() == -signal.SIGKILL:
            self.killed.add(worker.pid)
            self.running.remove(worker)
            self.running.append(self.start())


def one_round(arguments, folder: pathlib.Path, kills: int, rng: random.Random) -> Counter[str]:
    """Fills an empty file of results, with at most so many kills: what there is to count."""
    folder.mkdir()
    log = folder / "log.txt"
    (folder / "grid.py").write_text(LOGGED.format(log=str(log)) + GRIDS[arguments.grid])
    workers = Workers(arguments.workers, folder, folder.parent / "cache")
    due = time.monotonic() + rng.uniform(0, 2 * arguments.every)
    while workers.look():
        if len(workers.killed) < kills and time.monotonic() > due:
            workers.kill_one(log, rng)
            due = time.monotonic() + rng.uniform(0, 2 * arguments.every)
        time.sleep(0.02)
    told = read_log(log.read_text().splitlines(), workers.killed)
    rows = Counter(json.loads(line)["cell"] for line in (folder / "rows.jsonl").read_text().splitlines())
    cells = {subject for subject in told.finished if "/" in subject}
    said = (folder / "said.txt").read_text()
    if "Traceback" in said or workers.others.total():
        print(said[-3000:], workers.others)
    return Counter(
        cells=200 if arguments.grid == "quick" else 4,
        once=sum(count == 1 for count in rows.values()),
        twice=sum(count > 1 for count in rows.values()),
        strangers=len(rows.keys() - cells),
        kills=len(workers.killed),
        two_at_once=told.at_once,
        done_again=told.again,
        interrupted=told.interrupted,
        finished_but_not_kept=sum(max(count - 1, 0) for count in told.finished.values()),
        other_statuses=workers.others.total(),
        tracebacks=said.count("Traceback"),
        half_written=len([*(folder / "work").rglob("*.partial*")]),
        rounds=1,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--every", type=float, default=3.0, help="seconds between two kills, on average")
    parser.add_argument("--grid", choices=sorted(GRIDS), default="quick")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    origin, rng, began = provenance(), random.Random(arguments.seed), time.monotonic()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        while counts["kills"] < arguments.kills:
            name = f"round{counts['rounds']}"
            counts += one_round(arguments, pathlib.Path(folder) / name, arguments.kills - counts["kills"], rng)
            print(dict(counts), flush=True)
    wrong = ("twice", "strangers", "two_at_once", "done_again", "other_statuses", "tracebacks", "half_written")
    row = {
        "grid": arguments.grid,
        "workers": arguments.workers,
        **{
            name: counts[name]
            for name in ("kills", "rounds", "cells", "once", "interrupted", "finished_but_not_kept", *wrong)
        },
        "seconds": round(time.monotonic() - began, 1),
    }
    append_row(RESULTS, row | origin)
    if counts["once"] < counts["cells"] or any(counts[name] for name in wrong):
        sys.exit(f"not as it should be: {row}")
    print(f"{row['cells']} cells, {row['kills']} kills, every cell exactly once, nothing lost")


if __name__ == "__main__":
    main()
