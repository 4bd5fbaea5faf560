"""Entropic against exact plans on trained layers of 64 to 2048 neurons; appends rows to results/transport.jsonl.

    python -m benchmarks.transport --workdir=runs/transport

Two PreAct-ResNets with blocks (1, 1, 1, 1) learn scikit-learn's digits with BadNets: width 64 on 16x16 images (layers
of 64 to 512 neurons) and width 256 on 8x8 (256 to 2048). Each is repaired as published (gamma 0.1, lambda 0.5) with exact
plans, and with Sinkhorn's at several epsilons. A row is one network and epsilon: for each size of layer the worst over
its layers, and the repaired networks' ACC and ASR. Seconds are of one plan on one device, compiled before.
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

from launch import cli
from otbr_jax import fusion, transport
from otbr_jax.attacks.badnets import BadNetsConfig
from otbr_jax.attacks.registry import AttackConfig
from otbr_jax.defenses.otbr import OTBRConfig
from otbr_jax.experiments import evaluation, parallel
from otbr_jax.experiments.bench import append_row
from otbr_jax.experiments.config import RepairConfig, SweepConfig
from otbr_jax.experiments.pipeline import repair
from otbr_jax.experiments.provenance import ROOT, provenance
from otbr_jax.experiments.results import Repair
from otbr_jax.experiments.training import TrainingConfig
from otbr_jax.fusion import Alignment, FusionConfig, FusionInfo
from otbr_jax.models.registry import ModelConfig
from otbr_jax.transport import Plan, TransportConfig
from otbr_jax.types import Variables, named_leaves
from otbr_jax.weight_change import by_neuron

RESULTS = ROOT / "results" / "transport.jsonl"
WORKDIR = flags.DEFINE_string("workdir", "runs/transport", "Directory for the runs, one folder per width.")
WIDTHS = flags.DEFINE_list("widths", ["64", "256"], "Networks to run.")
EPSILONS = {"64": (1e-1, 3e-2, 1e-2, 3e-3, 1e-3), "256": (3e-2, 1e-2, 3e-3)}
SIZES = {"64": 16, "256": 8}
EXACT = TransportConfig(solver="exact")


def config(width: str) -> RepairConfig:
    size = SIZES[width]
    return RepairConfig(
        model=ModelConfig("preact_resnet10", int(width), image_shape=(size, size, 1)),
        attack=AttackConfig(badnets=BadNetsConfig(size=3 if size == 16 else 2)),
        training=TrainingConfig(epochs=8),
        otbr=OTBRConfig(fusion=FusionConfig(transport=EXACT)),
        sweep=SweepConfig(gamma=()),
    )


def plans(result: Repair, settings: TransportConfig) -> tuple[dict[str, Plan], dict[str, float]]:
    """One plan for each layer, and the seconds it took once compiled."""
    source, target = (named_leaves(result.stages[name].value["variables"]) for name in ("pruned", "victim"))
    scores = result.stages["scores"].value
    found, seconds = {}, {}
    solve = jax.jit(lambda *problem: transport.plan(*problem, config=settings))
    for layer in result.layers:
        rows = [by_neuron(kernels[layer.name], layer) for kernels in (source, target)]
        masses = [transport.mass(kind, scores[layer.name]) for kind in ("uniform", "nwc")]
        problem = (transport.cost_matrix(*rows), *masses)
        compiled = solve.lower(*problem).compile()
        began = time.perf_counter()
        found[layer.name] = jax.block_until_ready(compiled(*problem))
        seconds[layer.name] = time.perf_counter() - began
    return found, seconds


def fused(result: Repair, found: dict[str, Plan]) -> Variables:
    """The network fused by these plans."""
    used = result.stages["fused"].value["info"].fused
    maps = {
        layer.name: transport.barycentric_map(found[layer.name].matrix)
        if used[layer.name]
        else np.eye(layer.neurons, dtype=np.float32)
        for layer in result.layers
    }
    kernels = fusion.map_neurons(result.stages["pruned"].value["variables"], result.layers, maps)
    alignment = Alignment(kernels, FusionInfo(found, used))
    return fusion.interpolate(result.stages["victim"].value["variables"], alignment, lam=result.config.otbr.fusion.lam)


def measured(result: Repair, variables: Variables) -> dict[str, float]:
    """ACC and ASR."""
    test, mesh = result.test, parallel.local_mesh()
    assert test is not None
    predict = jax.jit(
        lambda variables: evaluation.predict_both(
            result.network, variables, test, prepare=lambda images: images.astype(np.float32) / 255, mesh=mesh
        )
    )
    found = predict(variables)
    metrics = evaluation.evaluate_predictions(found.clean, found.triggered, test.labels, target=test.goals)
    return {"acc": round(float(metrics.acc), 4), "asr": round(float(metrics.asr), 4)}


def compare(result: Repair, epsilon: float, exact: tuple[dict[str, Plan], dict[str, float]]) -> dict[str, Any]:
    """What one epsilon costs against exact plans, by size of layer."""
    best, exact_seconds = exact
    found, seconds = plans(result, TransportConfig(epsilon=epsilon))
    ours, theirs = (named_leaves(fused(result, each)) for each in (found, best))
    used = result.stages["fused"].value["info"].fused
    by_size = []
    for size in sorted({layer.neurons for layer in result.layers if used[layer.name]}):
        names = [layer.name for layer in result.layers if layer.neurons == size and used[layer.name]]
        gaps = [float(found[name].cost / best[name].cost - 1) for name in names]
        differences = [float(np.linalg.norm(ours[n] - theirs[n]) / np.linalg.norm(theirs[n])) for n in names]
        by_size.append(
            {
                "neurons": size,
                "layers": len(names),
                "cost_gap": max(gaps, key=abs),
                "marginal_error": max(float(found[name].marginal_error) for name in names),
                "fused_difference": max(differences),
                "converged": all(bool(found[name].converged) for name in names),
                "iterations": max(int(found[name].iterations) for name in names),
                "seconds": round(max(seconds[name] for name in names), 3),
                "exact_seconds": round(max(exact_seconds[name] for name in names), 3),
            }
        )
    return {"epsilon": epsilon, "sizes": by_size, "repaired": measured(result, fused(result, found))}


def main(arguments: Sequence[str]) -> None:
    del arguments
    origin = provenance()
    for width in WIDTHS.value:
        settings = config(width)
        result = repair(settings, pathlib.Path(WORKDIR.value) / f"width{width}")
        exact = plans(result, EXACT)
        row = {
            "network": f"{settings.model.name}-w{width}",
            "dataset": f"digits {SIZES[width]}x{SIZES[width]}",
            "seed": settings.seed,
            "gamma": settings.otbr.gamma,
            "lambda": settings.otbr.fusion.lam,
            "victim": measured(result, result.stages["victim"].value["variables"]),
            "exact": measured(result, fused(result, exact[0])),
            "training": dataclasses.asdict(settings.training) | {"images": "scikit-learn's digits"},
        }
        for epsilon in EPSILONS[width]:
            found = compare(result, epsilon, exact)
            append_row(RESULTS, row | found | origin)
            print(width, found, flush=True)


if __name__ == "__main__":
    cli.run(main)
