"""What faults leave behind: processes that are killed, terminated and interrupted, and full disks.

    python -m benchmarks.faults --kills=200 --terms=50 --ints=50 --disks=20

Three programs on a tiny victim of the digits: train_victim, repair and bench. Each is run undisturbed; then again and
again, each time until a signal at a random moment, and from there by the same command to its end. The results have to
be the same bits. A full disk is a file system in memory of a random size (root only), which grows
for the next start. Appends a row for each program and fault to results/faults.jsonl.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter

from otbr_jax.runs.provenance import ROOT, provenance

TINY = (
    "--config.model.width=4",
    "--config.training.epochs=4",
    "--config.images.made=100",
    "--config.images.images=60",
    "--config.inversion.steps=4",
    "--config.inversion.starts=8",
    "--config.unlearning.rounds=2",
    "--config.unlearning.steps=2",
    "--config.data.train_images=640",
)
GRID = """
import dataclasses
from configs.bench.disarm import default_victim
from otbr_jax.studies.bench import Cell, Bench
from otbr_jax.studies.repair_config import repaired_by

def get_grid():
    cell = default_victim(0)
    small = change(cell.config,
        model=dataclasses.replace(cell.config.victim.model, width=4),
        data=dataclasses.replace(cell.config.victim.data, train_images=640),
        training=dataclasses.replace(cell.config.victim.training, epochs=4),
    )
    return Bench("faults", tuple(Cell(repaired_by("clp", dataclasses.replace(small, seed=seed))) for seed in (0, 1)))
"""


def commands(folder: pathlib.Path, work: pathlib.Path) -> dict[str, list[str]]:
    """Each program's command line, in a working directory."""
    grid = folder / "grid.py"
    grid.write_text(GRID)
    victim = [flag for flag in TINY if "model" in flag or "training" in flag or "data" in flag]
    return {
        "train_victim": [
            "launch.train_victim",
            "--config=configs/victims/digits.py:badnets",
            f"--workdir={work}",
            *victim,
        ],
        "repair": ["launch.repair", f"--workdir={work}", *TINY],
        "bench": ["launch.bench", f"--grid={grid}", f"--workdir={work}", f"--results={work}/rows.jsonl"],
    }


def outcome(work: pathlib.Path) -> str:
    """A hash of what a program leaves: the values of its stages and the metrics, without dates and seconds."""
    digests = {}
    for file in sorted(work.rglob("stages/*/provenance.json")):
        digests[file.parent.name] = json.loads(file.read_text())["digest"]
    for file in sorted(work.rglob("metrics.json")):
        manifest = json.loads(file.read_text())
        digests[str(file.relative_to(work))] = [manifest["metrics"], manifest["choice"]]
    for file in sorted(work.glob("rows.jsonl")):
        digests["rows"] = [[row["cell"], row["metrics"]] for row in map(json.loads, file.read_text().splitlines())]
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def leftovers(work: pathlib.Path) -> list[str]:
    """What is half-written."""
    return [str(path.relative_to(work)) for path in work.rglob("*.partial*")]


class Programs:
    """Runs programs and counts how they ended."""

    def __init__(self, cache: pathlib.Path) -> None:
        self.environment = {**os.environ, "TQDM_DISABLE": "1", "JAX_COMPILATION_CACHE_DIR": str(cache)}
        self.environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        self.seen: Counter[str] = Counter()

    def run(self, command: list[str], *, sent: signal.Signals | None = None, after: float = 0.0) -> int:
        """The status of a process, which is sent a signal after so many seconds if it still runs."""
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=self.environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        began = time.monotonic()
        try:
            _, said = process.communicate(timeout=after if sent else 600)
        except subprocess.TimeoutExpired:
            assert sent is not None
            process.send_signal(sent)
            told = time.monotonic()
            _, said = process.communicate(timeout=120)
            self.seen["signals"] += 1
            self.seen["slow"] += time.monotonic() - told > 10
            expected = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[sent]
            if process.returncode not in (expected, 0):
                self.seen["other statuses"] += 1
                print(f"status {process.returncode} after {time.monotonic() - began:.1f} s: {said.decode()[-500:]}")
        self.seen["tracebacks"] += b"Traceback" in said
        if b"Traceback" in said:
            print(said.decode()[-2000:])
        return process.returncode


def disturbed(programs: Programs, command: list[str], sent: signal.Signals, longest: float, rng) -> None:
    """Runs a program until a signal, and then by the same command to its end."""
    if programs.run(command, sent=sent, after=rng.uniform(0.2, longest)) != 0:
        programs.seen["other statuses"] += programs.run(command) != 0


def full_disk(programs: Programs, command: list[str], work: pathlib.Path, rng) -> None:
    """Runs a program on a disk of a random size, which grows for the next start."""
    size = rng.randint(60, 700)
    work.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(work)], check=True)
    try:
        while (status := programs.run(command)) != 0:
            programs.seen["full disks"] += 1
            programs.seen["other statuses"] += status != 2
            programs.seen["left half-written"] += bool(leftovers(work))
            size = 2 * size
            subprocess.run(["mount", "-o", f"remount,size={size}k", str(work)], check=True)
        programs.seen["outcome"] = outcome(work)
    finally:
        subprocess.run(["umount", str(work)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, count in (("kills", 200), ("terms", 50), ("ints", 50), ("disks", 20)):
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--programs", default="train_victim,repair,bench")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", default=str(ROOT / "results" / "faults.jsonl"))
    arguments = parser.parse_args()
    origin, rng = provenance(), random.Random(arguments.seed)
    chosen = arguments.programs.split(",")
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        programs, expected, longest = Programs(folder / "cache"), {}, {}
        for name in chosen:
            for turn in ("cold", "warm"):
                work = folder / f"{name}_{turn}"
                began = time.monotonic()
                status = programs.run(commands(folder, work)[name])
                assert status == 0, f"{name} fails undisturbed"
                expected[name], longest[name] = outcome(work), time.monotonic() - began
        kinds = {"kills": signal.SIGKILL, "terms": signal.SIGTERM, "ints": signal.SIGINT}
        for kind, sent in kinds.items():
            for name in chosen if getattr(arguments, kind) else ():
                programs.seen = Counter()
                wanted, trials, same = -(-getattr(arguments, kind) // len(chosen)), 0, 0
                while programs.seen["signals"] < wanted:
                    work = folder / f"{name}_{kind}_{trials}"
                    disturbed(programs, commands(folder, work)[name], sent, longest[name], rng)
                    trials, same = trials + 1, same + (outcome(work) == expected[name])
                    programs.seen["left half-written"] += bool(leftovers(work))
                write(arguments.results, origin, name, kind, trials, same, programs.seen)
        for name in chosen if arguments.disks else ():
            programs.seen = Counter()
            wanted, trials, same = -(-arguments.disks // len(chosen)), 0, 0
            while programs.seen["full disks"] < wanted:
                work = folder / f"{name}_disk_{trials}"
                full_disk(programs, commands(folder, work)[name], work, rng)
                trials, same = trials + 1, same + (programs.seen.pop("outcome") == expected[name])
            write(arguments.results, origin, name, "disks", trials, same, programs.seen)


def write(results: str, origin, program: str, fault: str, trials: int, same: int, seen: Counter) -> None:
    """Prints and appends a row."""
    row = {
        "program": program,
        "fault": fault,
        "faults": seen["full disks"] if fault == "disks" else seen["signals"],
        "runs": trials,
        "same_bits": same,
        "tracebacks": seen["tracebacks"],
        "other_statuses": seen["other statuses"],
        "half_written": seen["left half-written"],
        "slower_than_10_s": seen["slow"],
        **origin,
    }
    print({name: value for name, value in row.items() if name not in origin}, flush=True)
    with open(results, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
