"""PyTorch checkpoints that somebody else trained, repaired by the default and by OTBR as published.

    python -m benchmarks.torch_victims --folder=VICTIMS --images=cifar10_test.npz --workdir=runs/victims

`--folder` holds state dicts of the toolkit's PreAct-ResNet18 (names, no final BatchNorm-ReLU) with first width 16,
trained on CIFAR-10; `--images` the test set as `images` (uint8 `[n, 32, 32, 3]`) and `labels`. ASR and RA are measured
with BadNets' white 3x3 square and target class 0. Every file is loaded, measured, repaired and written back, and the
written file is loaded again. Rows are appended to results/torch_victims.jsonl; each carries the file's name and digest,
settings, commit, hardware, date.
"""

import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from launch import cli
from otbr_jax.data.sources import DataConfig
from otbr_jax.models.registry import ModelConfig
from otbr_jax.report.results_tables import markdown
from otbr_jax.report.rows import append_row, parse
from otbr_jax.report.summary import summary_table
from otbr_jax.runs.loading import load_checkpoint
from otbr_jax.runs.provenance import ROOT, provenance
from otbr_jax.studies.repair import repair
from otbr_jax.studies.repair_config import repair_config
from otbr_jax.studies.results import summarize

RESULTS = ROOT / "results" / "torch_victims.jsonl"
FOLDER = flags.DEFINE_string("folder", None, "Folder of .pt files.", required=True)
IMAGES = flags.DEFINE_string("images", None, "CIFAR-10's test images as .npz.", required=True)
WORKDIR = flags.DEFINE_string("workdir", "runs/victims", "Directory for the runs, one folder per file.")
WAYS = flags.DEFINE_multi_string("defense", ["disarm", "otbr"], "Which defences.")
PROVENANCE = flags.DEFINE_string("provenance", "CIFAR-10", "What the images are, for the rows.")


def measure(file: pathlib.Path, defense: str) -> dict[str, Any]:
    data = DataConfig("npz", IMAGES.value, mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.243, 0.261))
    model = ModelConfig(name="preact_resnet18", width=16, checkpoint=str(file))
    config = repair_config(defense=defense, model=model, data=data)
    result = repair(config, pathlib.Path(WORKDIR.value) / file.stem / defense)
    summary = summarize(result)
    print(f"\n{file.name}\n{summary_table(summary)}")
    written, _ = load_checkpoint(result.files[0], result.variables, name="written")
    jax.tree.map(np.testing.assert_array_equal, written, result.variables)
    kept = ("metrics", "choice", "verdict", "detection", "unlearned_triggers", "oracle", "sweep", "transport")
    return {
        "file": file.name,
        "defense": defense,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "images": PROVENANCE.value,
        "seed": config.victim.seed,
        "seconds": round(sum(stage["seconds"] for stage in summary["stages"].values()), 1),
        **{name: summary[name] for name in kept if name in summary},
        # Without the folders of one machine.
        "config": summary["config"]
        | {"model": summary["config"]["model"] | {"checkpoint": file.name}}
        | {"data": summary["config"]["data"] | {"path": pathlib.Path(IMAGES.value).name}},
    }


def main(arguments: Sequence[str]) -> None:
    del arguments
    origin = provenance()
    for file in sorted(pathlib.Path(FOLDER.value).glob("*.pt")):
        for defense in WAYS.value:
            append_row(RESULTS, measure(file, defense) | origin)
    print(markdown("torch_victims", parse(RESULTS.read_text(), name=RESULTS.name)))


if __name__ == "__main__":
    cli.run(main)
