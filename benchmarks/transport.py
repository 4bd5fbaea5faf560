"""Entropic against exact plans on trained layers of 64 to 2048 neurons; appends rows to results/transport.jsonl.

    python -m benchmarks.transport --workdir=runs/transport

Two networks learn scikit-learn's digits with BadNets: a PreAct-ResNet with blocks (1, 1, 1, 1) and width 64 on 16x16
images (convolutions of 64 to 512 neurons), and the MLP of `benchmarks/mlp.py` on 8x8 (dense layers of 64 to 2048).
Each is repaired as published (gamma 0.1, lambda 0.5) with exact plans, and with Sinkhorn's at several epsilons. A row
is one network and epsilon: for each size of layer the worst over its layers, and the repaired networks' ACC and ASR.
Seconds are of one plan on one device, compiled before.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks import mlp
from launch import cli
from otbr_jax.contrib.otbr_plus import SweepConfig
from otbr_jax.defenses.otbr import OTBRConfig
from otbr_jax.models.registry import ModelConfig
from otbr_jax.report.rows import append_row
from otbr_jax.runs.provenance import ROOT, provenance
from otbr_jax.settings import change
from otbr_jax.steps import fuse as fusion
from otbr_jax.steps import transport
from otbr_jax.steps.fuse import Alignment, FusionConfig, FusionInfo
from otbr_jax.steps.score import by_neuron
from otbr_jax.steps.transport import Plan, TransportConfig
from otbr_jax.studies.repair import repair
from otbr_jax.studies.repair_config import repair_config
from otbr_jax.studies.results import Repair
from otbr_jax.types import Variables, named_leaves
from otbr_jax.victims import evaluation
from otbr_jax.victims.training import TrainingConfig

RESULTS = ROOT / "results" / "transport.jsonl"
WORKDIR = flags.DEFINE_string("workdir", "runs/transport", "Directory for the runs, one folder per network.")
EPSILONS = (1e-1, 3e-2, 1e-2, 3e-3)
EXACT = TransportConfig(solver="exact")
_REPAIR = repair_config(otbr=OTBRConfig(fusion=FusionConfig(transport=EXACT)), sweep=SweepConfig(gamma=()))
NETWORKS = {
    "preact_resnet10-w64": change(
        _REPAIR,
        model=ModelConfig("preact_resnet10", 64, image_shape=(16, 16, 1)),
        training=TrainingConfig(epochs=5),
    ),
    "mlp": change(
        _REPAIR,
        model=ModelConfig(str(pathlib.Path(mlp.__file__)) + ":network", image_shape=mlp.SHAPE),
        attack=mlp.ATTACK,
    ),
}


def plans(result: Repair, settings: TransportConfig) -> tuple[dict[str, Plan], dict[str, float]]:
    """One plan for each layer, and the seconds it took once compiled."""
    source = named_leaves(result.stages["pruned"].value.variables)
    target = named_leaves(result.stages["victim"].value["variables"])
    scores = result.stages["scores"].value
    by_layer, seconds = {}, {}
    solve = jax.jit(lambda *problem: transport.plan(*problem, config=settings))
    for layer in result.layers:
        rows = [by_neuron(kernels[layer.name], layer) for kernels in (source, target)]
        masses = [transport.mass(kind, scores[layer.name]) for kind in ("uniform", "nwc")]
        problem = (transport.cost_matrix(*rows), *masses)
        compiled = solve.lower(*problem).compile()
        began = time.perf_counter()
        by_layer[layer.name] = jax.block_until_ready(compiled(*problem))
        seconds[layer.name] = time.perf_counter() - began
    return by_layer, seconds


def fused(result: Repair, by_layer: dict[str, Plan], *, everywhere: bool = False) -> Variables:
    """The network fused by these plans; `everywhere`, also before the first layer that holds a pruned neuron."""
    used = result.stages["fused"].value.info.fused
    used = {name: np.bool_(everywhere or started) for name, started in used.items()}
    maps = {
        layer.name: transport.barycentric_map(by_layer[layer.name].matrix)
        if used[layer.name]
        else np.eye(layer.neurons, dtype=np.float32)
        for layer in result.layers
    }
    kernels = fusion.map_neurons(result.stages["pruned"].value.variables, result.layers, maps)
    alignment = Alignment(kernels, FusionInfo(by_layer, used))
    victim, method = result.stages["victim"].value["variables"], result.config.method
    return fusion.interpolate(victim, alignment, lam=method.otbr.fusion.lam)


def measured(result: Repair, variables: Variables) -> dict[str, float]:
    """ACC and ASR."""
    test = result.test
    assert test is not None
    network = dataclasses.replace(result.network, prepare=lambda images: images.astype(np.float32) / 255)
    metrics = jax.jit(lambda variables: evaluation.measure(network, variables, test))(variables)
    return {"acc": round(float(metrics.acc), 4), "asr": round(float(metrics.asr), 4)}


def compare(result: Repair, epsilon: float, exact: tuple[dict[str, Plan], dict[str, float]]) -> dict[str, Any]:
    """What one epsilon costs against exact plans, by size of layer."""
    best, exact_seconds = exact
    by_layer, seconds = plans(result, TransportConfig(epsilon=epsilon))
    ours, theirs = (named_leaves(fused(result, each, everywhere=True)) for each in (by_layer, best))
    by_size = []
    for size in sorted({layer.neurons for layer in result.layers}):
        names = [layer.name for layer in result.layers if layer.neurons == size]
        gaps = [float(by_layer[name].cost / best[name].cost - 1) for name in names]
        differences = [float(np.linalg.norm(ours[n] - theirs[n]) / np.linalg.norm(theirs[n])) for n in names]
        by_size.append(
            {
                "neurons": size,
                "layers": len(names),
                "cost_gap": max(gaps, key=abs),
                "marginal_error": max(float(by_layer[name].marginal_error) for name in names),
                "fused_difference": max(differences),
                "converged": all(bool(by_layer[name].converged) for name in names),
                "iterations": max(int(by_layer[name].iterations) for name in names),
                "seconds": round(max(seconds[name] for name in names), 3),
                "exact_seconds": round(max(exact_seconds[name] for name in names), 3),
            }
        )
    return {"epsilon": epsilon, "sizes": by_size, "repaired": measured(result, fused(result, by_layer))}


def main(arguments: Sequence[str]) -> None:
    del arguments
    origin = provenance()
    for name, settings in NETWORKS.items():
        result = repair(settings, pathlib.Path(WORKDIR.value) / name)
        exact = plans(result, EXACT)
        row = {
            "network": name,
            "dataset": "digits, {} x {}".format(*settings.victim.model.image_shape),
            "seed": settings.victim.seed,
            "gamma": settings.method.otbr.gamma,
            "lambda": settings.method.otbr.fusion.lam,
            "victim": measured(result, result.stages["victim"].value["variables"]),
            "exact": measured(result, fused(result, exact[0])),
            "training": None if name == "mlp" else dataclasses.asdict(settings.victim.training),
        }
        for epsilon in EPSILONS:
            comparison = compare(result, epsilon, exact)
            append_row(RESULTS, row | comparison | origin)
            print(name, comparison, flush=True)


if __name__ == "__main__":
    cli.run(main)
