"""What the grid gamma x lambda costs against a single setting; appends a row to results/sweep.jsonl.

    python -m benchmarks.sweep --workdir=runs/sweep

On the digits default's victim: pruning, transport, fusion and measuring of one setting, of the grid of 7 x 5 as
`configs/otbr.py` measures it (all settings on some images, the best few on all), and of the grid on all images. Each is
compiled once; they take turns, three times, and the fastest counts. Seconds are those of the processors, all cores
together, which do not depend on what else a machine does. The same without measuring. Memory is what the
compiler reserves for temporary arrays, also for VGG19-BN of width 64 on 32x32 images, not run.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from configs.otbr import get_config
from launch import cli
from otbr_jax import trace
from otbr_jax.contrib import otbr_plus
from otbr_jax.contrib.otbr_plus import OTBRSettings, SweepConfig
from otbr_jax.defenses.grid import Screening, measure
from otbr_jax.defenses.otbr import OTBRConfig
from otbr_jax.models.registry import ModelConfig
from otbr_jax.plan import Setup, set_up
from otbr_jax.report.rows import append_row
from otbr_jax.runs.networks import open_network
from otbr_jax.runs.provenance import ROOT, provenance
from otbr_jax.settings import change, from_dict
from otbr_jax.steps.fuse import FusionConfig, align, interpolate
from otbr_jax.steps.prune import neurons_to_prune, prune
from otbr_jax.studies.repair import repair
from otbr_jax.studies.repair_config import RepairConfig
from otbr_jax.types import Network
from otbr_jax.victims import evaluation
from otbr_jax.victims.evaluation import TestSet

RESULTS = ROOT / "results" / "sweep.jsonl"
WORKDIR = flags.DEFINE_string("workdir", "runs/sweep", "Directory for the victim.")
GRID = SweepConfig()
ROUNDS = 3


def program(setup: Setup, gammas, lams, images: int, traces: list[None]) -> Callable[..., Any]:
    """The grid; `images` of the test set are looked at first, 0 for all."""
    config = OTBRSettings(
        otbr=OTBRConfig(fusion=FusionConfig(lam=lams[0])), sweep=SweepConfig(gamma=tuple(gammas), lam=tuple(lams))
    )

    def function(variables, scores, test):
        traces.append(None)
        key = jax.random.key(0)
        ask = lambda test: partial(evaluation.measure, setup.network, test=test)  # noqa: E731
        few = Screening(ask(evaluation.balanced(test, images, key=key)), images, len(test.labels)) if images else None
        return measure(
            otbr_plus.grid(config), setup, ask(test),
            victim=variables, scores=scores, key=key, screening=few,
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


def seconds(functions: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """CPU seconds of the fastest of several calls of each, which take turns."""
    cpu_seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            began = time.process_time()
            jax.block_until_ready(function())
            cpu_seconds[name].append(time.process_time() - began)
    return {name: round(min(times), 3) for name, times in cpu_seconds.items()}


def megabytes(program: Any) -> float:
    """What a compiled program reserves for temporary arrays, MiB."""
    return round(program.memory_analysis().temp_size_in_bytes / 2**20, 1)


def _prepared(network: Network) -> Network:
    return dataclasses.replace(network, prepare=lambda images: images.astype(jnp.float32) / 255)


def vgg19(gammas, lams, few: int) -> float:
    subject = open_network(ModelConfig("vgg19_bn"))
    setup = set_up(_prepared(subject.network), subject.graph, layers="convolutions")
    images, labels = jax.ShapeDtypeStruct((2000, 32, 32, 3), jnp.uint8), jax.ShapeDtypeStruct((2000,), jnp.int32)
    scores = {layer.name: jax.ShapeDtypeStruct((layer.neurons,), jnp.float32) for layer in setup.layers}
    function = program(setup, gammas, lams, few, [])
    return megabytes(function.lower(subject.like, scores, TestSet(images, images, labels, labels)).compile())


def main(arguments: Sequence[str]) -> None:
    del arguments
    origin = provenance()
    config = from_dict(RepairConfig, get_config().to_dict())
    result = repair(change(config, sweep=SweepConfig(gamma=())), WORKDIR.value)
    single = ((config.method.otbr.gamma,), (config.method.otbr.fusion.lam,))
    few = config.method.sweep.screening_images
    settings = {"single": (*single, 0), "grid": (GRID.gamma, GRID.lam, few), "grid_on_all": (GRID.gamma, GRID.lam, 0)}
    graph = trace(result.network.apply, result.variables, jnp.zeros((2, *result.network.image_shape)))
    setup = set_up(_prepared(result.network), graph, layers=config.method.otbr.layers)
    victim, scores, test = result.stages["victim"].value["variables"], result.stages["scores"].value, result.test
    traces: dict[str, list[None]] = {name: [] for name in settings}
    whole = {
        name: program(setup, *own, traces[name]).lower(victim, scores, test).compile() for name, own in settings.items()
    }
    alone = {
        name: unmeasured(setup, *settings[name][:2]).lower(victim, scores).compile() for name in ("single", "grid")
    }
    took = seconds({name: partial(function, victim, scores, test) for name, function in whole.items()})
    bare = seconds({name: partial(function, victim, scores) for name, function in alone.items()})
    print(took, bare, flush=True)
    row: dict[str, Any] = {
        "network": f"{config.victim.model.name}-w{config.victim.model.width}",
        "dataset": "digits",
        "seed": 0,
    }
    row |= {"test_images": len(test.labels), "settings": len(GRID.gamma) * len(GRID.lam), "screening_images": few}
    for name, own in settings.items():
        row[name] = {
            "seconds": took[name],
            "without_measuring": bare.get(name, bare["grid"]),
            "traces": len(traces[name]),
            "temporary_mib": megabytes(whole[name]),
            "temporary_mib_vgg19_bn": vgg19(*own),
        }
    row["ratio_seconds"] = round(took["grid"] / took["single"], 2)
    row["ratio_on_all"] = round(took["grid_on_all"] / took["single"], 2)
    row["ratio_without_measuring"] = round(bare["grid"] / bare["single"], 2)
    append_row(RESULTS, row | origin)
    print(row)


if __name__ == "__main__":
    cli.run(main)
