"""Several processes that compute one run together, and what happens when one of them is killed.

    python -m benchmarks.hosts --processes=2 --processes=4

`launch.repair` by OTBR on a tiny victim of the digits: in one process, then in several with Gloo between them, which
have to find the same networks within float32's rounding. Then, for each stage, a process is killed as soon as the stage
before it is written: the others have to end with a line, and the same command, started again, has to end with the
same bits as the run that nobody disturbed. Appends a row to results/hosts.jsonl.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from absl import flags

from launch import cli
from otbr_jax.report.rows import append_row
from otbr_jax.runs.provenance import ROOT, provenance

RESULTS = ROOT / "results" / "hosts.jsonl"
PROCESSES = flags.DEFINE_multi_integer("processes", [2], "How many processes; may be given several times.")
KILLS = flags.DEFINE_bool("kills", True, "Whether a process is killed in every stage, too.")

STAGES = ("victim", "unlearned", "scores", "pruned", "fused", "evaluation")
LIMIT = 30.0
"""Seconds within which the others have to end."""
TINY = (
    "--config=configs/otbr.py",
    "--config.model.width=4",
    "--config.training.epochs=2",
    "--config.data.train_images=640",
    "--config.otbr.unlearning.steps=3",
    "--config.sweep.gamma=()",
)


def start(workdir: pathlib.Path, count: int) -> list[subprocess.Popen[str]]:
    """The processes of one run."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    command = [sys.executable, "-m", "launch.repair", *TINY, f"--workdir={workdir}"]
    together = [f"--coordinator=localhost:{port}", f"--num_processes={count}"] if count > 1 else []
    return [
        subprocess.Popen(
            [*command, *together, *([f"--process_id={index}"] if together else [])],
            cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for index in range(count)
    ]  # fmt: skip


def finish(processes: Sequence[subprocess.Popen[str]]) -> list[str]:
    """What each said on its standard error; raises if one failed."""
    said = [process.communicate(timeout=1200)[1] for process in processes]
    for process, text in zip(processes, said, strict=True):
        assert process.returncode == 0, text
    return said


def digests(workdir: pathlib.Path) -> dict[str, str]:
    """The hash of each stage's values."""
    manifests = [json.loads(file.read_text()) for file in workdir.glob("stages/*/provenance.json")]
    return {stage["name"]: stage["digest"] for stage in manifests}


def metrics(workdir: pathlib.Path) -> dict[str, Any]:
    """ACC, ASR and RA of the networks."""
    return {
        name: {key: value for key, value in row.items() if key != "der"}
        for name, row in json.loads((workdir / "metrics.json").read_text())["metrics"].items()
    }


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """By how much metrics differ, at most."""
    return max(abs(one[name][key] - other[name][key]) for name in one for key in one[name])


def kill_in(stage: str, workdir: pathlib.Path, count: int, *, index: int) -> tuple[float, list[str]]:
    """Kills a process as soon as the stage before is written; seconds until the others end, and what they say."""
    processes = start(workdir, count)
    before = STAGES[STAGES.index(stage) - 1] if stage != STAGES[0] else ""
    until = time.monotonic() + 600
    while not any(workdir.glob(f"stages/{before}-*/provenance.json" if before else "workdir.json")):
        assert time.monotonic() < until, stage
        assert all(process.poll() is None for process in processes), stage
        time.sleep(0.02)
    processes[index].send_signal(signal.SIGKILL)
    began, said = time.monotonic(), []
    for place, process in enumerate(processes):
        _, text = process.communicate(timeout=300)
        if place != index:
            said.append(text)
            assert process.returncode != 0, (stage, text)
    return time.monotonic() - began, said


def measure(count: int, root: pathlib.Path, alone: pathlib.Path) -> dict[str, Any]:
    """A run of so many processes, undisturbed and disturbed."""
    whole = root / f"whole{count}"
    finish(start(whole, count))
    row: dict[str, Any] = {"processes": count, "metrics_apart": apart(metrics(whole), metrics(alone))}
    print(f"{count} processes: metrics differ from those of one by at most {row['metrics_apart']:.4f}", flush=True)
    slowest, clear, same = 0.0, 0, 0
    for number, stage in enumerate(STAGES if KILLS.value else ()):
        workdir = root / f"killed{count}{stage}"
        seconds, said = kill_in(stage, workdir, count, index=number % count)
        lines = [[line for line in text.splitlines() if line] for text in said]
        is_clear = all(output and "another process" in output[-1] and "goes on" in output[-1] for output in lines)
        finish(start(workdir, count))
        is_same = digests(workdir) == digests(whole)
        slowest, clear, same = max(slowest, seconds), clear + is_clear, same + is_same
        print(
            f"  process {number % count} killed in {stage}: others end after {seconds:.1f} s, clear line: {is_clear}, "
            f"same bits afterwards: {is_same}",
            flush=True,
        )
        if not is_clear:
            print(*said, sep="\n")
    if KILLS.value:
        row |= {"kills": len(STAGES), "clear_lines": clear, "same_bits": same, "slowest_end_s": round(slowest, 1)}
        row |= {"limit_s": LIMIT, "within_limit": slowest <= LIMIT}
    return row


def main(arguments: Sequence[str]) -> None:
    """Runs, kills, compares."""
    del arguments
    origin = provenance()
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        finish(start(root / "alone", 1))
        for count in PROCESSES.value:
            append_row(RESULTS, measure(count, root, root / "alone") | origin)


if __name__ == "__main__":
    cli.run(main)
