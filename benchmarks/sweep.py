"""What the grid gamma x lambda costs against a single setting; appends a row to results/sweep.jsonl.

    python -m benchmarks.sweep --workdir=runs/sweep

On the digits default's victim: pruning, transport, fusion and measuring of one setting, and of the grid of 7 x 5, each
compiled once and run three times (the fastest counts), in one process; and the same without measuring. Memory is
what the compiler reserves for temporary arrays, also for VGG19-BN of width 64 on 32x32 images, not run.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from configs.otbr import get_config
from launch import cli
from otbr_jax import trace
from otbr_jax.defenses import otbr_plus
from otbr_jax.defenses.otbr import OTBRConfig
from otbr_jax.defenses.otbr_plus import OTBRSettings, SweepConfig
from otbr_jax.models.registry import ModelConfig
from otbr_jax.plan import Setup, set_up
from otbr_jax.report.rows import append_row
from otbr_jax.runs.networks import open_network
from otbr_jax.runs.provenance import ROOT, provenance
from otbr_jax.steps.fuse import FusionConfig, align, interpolate
from otbr_jax.steps.prune import neurons_to_prune, prune
from otbr_jax.studies.repair import repair
from otbr_jax.studies.repair_config import repair_config
from otbr_jax.types import Network
from otbr_jax.victims import evaluation
from otbr_jax.victims.evaluation import TestSet

RESULTS = ROOT / "results" / "sweep.jsonl"
WORKDIR = flags.DEFINE_string("workdir", "runs/sweep", "Directory for the victim.")
GRID = SweepConfig()


def program(setup: Setup, gammas, lams, traces: list[None]) -> Callable[..., Any]:
    config = OTBRSettings(
        otbr=OTBRConfig(fusion=FusionConfig(lam=lams[0])), sweep=SweepConfig(gamma=tuple(gammas), lam=tuple(lams))
    )

    def function(variables, scores, test):
        traces.append(None)
        return otbr_plus.sweep(
            config, setup, lambda variables: evaluation.measure(setup.network, variables, test),
            victim=variables, scores=scores, key=jax.random.key(0), report=None,
        )  # fmt: skip

    return jax.jit(function)


def unmeasured(setup: Setup, gammas, lams) -> Callable[..., Any]:
    """Pruning, transport and fusion alone; the fused weights are only summed up."""
    counts = [neurons_to_prune(gamma, setup.neurons) for gamma in gammas]

    def function(variables, scores):
        def one_gamma(count):
            pruned, info = prune(variables, scores, setup.layers, count=count)
            alignment = align(
                pruned, variables, scores, info.pruned, setup.layers,
                config=FusionConfig(), key=jax.random.key(0),
            )  # fmt: skip
            total = lambda tree: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(tree))  # noqa: E731
            return jax.lax.map(
                lambda lam: total(interpolate(variables, alignment, lam=lam)["params"]), jnp.array(lams, jnp.float32)
            )

        return jax.lax.map(one_gamma, jnp.array(counts, jnp.int32))

    return jax.jit(function)


def seconds(function: Callable[..., Any], *arguments: Any) -> float:
    jax.block_until_ready(function(*arguments))
    found = []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        found.append(time.perf_counter() - began)
    return min(found)


def temporary_megabytes(function: Callable[..., Any], *arguments: Any) -> float:
    memory = jax.jit(function).lower(*arguments).compile().memory_analysis()
    return round(memory.temp_size_in_bytes / 2**20, 1)


def _prepared(network: Network) -> Network:
    return dataclasses.replace(network, prepare=lambda images: images.astype(jnp.float32) / 255)


def vgg19(gammas, lams) -> float:
    subject = open_network(ModelConfig("vgg19_bn"))
    setup = set_up(_prepared(subject.network), subject.graph, layers="convolutions")
    images, labels = jax.ShapeDtypeStruct((2000, 32, 32, 3), jnp.uint8), jax.ShapeDtypeStruct((2000,), jnp.int32)
    scores = {layer.name: jax.ShapeDtypeStruct((layer.neurons,), jnp.float32) for layer in setup.layers}
    function = program(setup, gammas, lams, [])
    return temporary_megabytes(function, subject.like, scores, TestSet(images, images, labels, labels))


def main(arguments: Sequence[str]) -> None:
    del arguments
    origin = provenance()
    config = repair_config(get_config().to_dict())
    result = repair(dataclasses.replace(config, sweep=SweepConfig(gamma=())), WORKDIR.value)
    single = ((config.otbr.gamma,), (config.otbr.fusion.lam,))
    grid = (GRID.gamma, GRID.lam)
    graph = trace(result.network.apply, result.variables, jnp.zeros((2, *result.network.image_shape)))
    setup = set_up(_prepared(result.network), graph, layers=config.otbr.layers)
    victim, scores = result.stages["victim"].value["variables"], result.stages["scores"].value
    traces: dict[str, list[None]] = {"single": [], "grid": []}
    row: dict[str, Any] = {"network": f"{config.model.name}-w{config.model.width}", "dataset": "digits", "seed": 0}
    row |= {"test_images": len(result.test.labels), "settings": len(GRID.gamma) * len(GRID.lam)}
    for name, settings in (("single", single), ("grid", grid)):
        whole = program(setup, *settings, traces[name])
        row[name] = {
            "seconds": round(seconds(whole, victim, scores, result.test), 3),
            "without_measuring": round(seconds(unmeasured(setup, *settings), victim, scores), 3),
            "traces": len(traces[name]),
            "temporary_mib": temporary_megabytes(whole, victim, scores, result.test),
            "temporary_mib_vgg19_bn": vgg19(*settings),
        }
    for name in ("seconds", "without_measuring"):
        row[f"ratio_{name}"] = round(row["grid"][name] / row["single"][name], 2)
    append_row(RESULTS, row | origin)
    print(row)


if __name__ == "__main__":
    cli.run(main)
