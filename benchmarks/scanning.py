"""Checkpoints per minute of a scan: the first one compiles, the others do not; appends a row to results/scanning.jsonl.

    python -m benchmarks.scanning

A folder of checkpoints of one small PreAct-ResNet with random weights, as PyTorch files, is scanned as
`launch.inspect_network --scan` does, by the default's detector and by MM-BD. Nothing compiled is kept on disk. CPU
seconds are those of all cores, which do not depend on what else a machine does.
"""

from __future__ import annotations

import itertools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from launch import cli
from otbr_jax.interop.state_dict import tensor_name
from otbr_jax.models.registry import ModelConfig, build
from otbr_jax.report.rows import append_row
from otbr_jax.runs.provenance import ROOT, provenance
from otbr_jax.studies.repair_config import repair_config
from otbr_jax.studies.scanning import list_checkpoints, scan
from otbr_jax.types import named_leaves

RESULTS = flags.DEFINE_string("results", str(ROOT / "results" / "scanning.jsonl"), "File of the rows.")
MODEL = ModelConfig("preact_resnet10", width=8, image_shape=(16, 16, 1))
COUNTS = {"trigger_size": 4, "mm_bd": 8}
"""How many checkpoints each detector is asked about."""


def save(path: pathlib.Path, seed: int) -> None:
    """A PyTorch file of `MODEL` with random weights."""
    import torch

    tensors = {}
    for name, array in named_leaves(jax.jit(build(MODEL)[1])(jax.random.key(seed))).items():
        order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, range(array.ndim))
        tensors[tensor_name(name)] = torch.tensor(jax.device_get(array.transpose(*order)).copy())
    torch.save(tensors, path)


def scanned(folder: pathlib.Path, detector: str) -> dict[str, Any]:
    """What a scan of a folder takes."""
    wall, cpu = [time.perf_counter()], [time.process_time()]

    def say(line: dict[str, Any]) -> None:
        print(line, flush=True)
        wall.append(time.perf_counter())
        cpu.append(time.process_time())

    scan(repair_config(defense="disarm", model=MODEL), list_checkpoints(folder), detector=detector, say=say)
    first, *others = (after - before for before, after in itertools.pairwise(wall))
    first_cpu, *others_cpu = (after - before for before, after in itertools.pairwise(cpu))
    each, each_cpu = statistics.median(others), statistics.median(others_cpu)
    return {
        "detector": detector,
        "network": f"{MODEL.name}-w{MODEL.width}",
        "image_shape": MODEL.image_shape,
        "checkpoints": len(others) + 1,
        "first_seconds": round(first, 2),
        "seconds": round(each, 2),
        "per_minute": round(60 / each, 1),
        "first_cpu_seconds": round(first_cpu, 2),
        "cpu_seconds": round(each_cpu, 2),
        "per_cpu_minute": round(60 / each_cpu, 1),
    }


def main(arguments: Sequence[str]) -> None:
    del arguments
    origin = provenance()
    jax.config.update("jax_enable_compilation_cache", False)
    for detector, count in COUNTS.items():
        with tempfile.TemporaryDirectory() as folder:
            for seed in range(count):
                save(pathlib.Path(folder) / f"{seed:02}.pt", seed)
            result = scanned(pathlib.Path(folder), detector)
        append_row(pathlib.Path(RESULTS.value), result | origin)
        print(result, flush=True)


if __name__ == "__main__":
    cli.run(main)
