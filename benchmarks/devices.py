"""What devices tell each other, stage by stage: collectives and bytes in the compiled programs.

    python -m benchmarks.devices

Compiles every step of the default, of OTBR and of TSBD, and an epoch of training, for eight simulated devices; runs
them on a VGG of width 8 on the digits' shape with random weights; and compares what they find with what one device
finds. Appends a row to results/devices.jsonl. Bytes are those of one device; an instruction in a loop counts once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch import cli
from otbr_jax import plan as plans
from otbr_jax.defenses import disarm, otbr, tsbd
from otbr_jax.defenses.disarm import DisarmSettings
from otbr_jax.defenses.otbr import OTBRConfig
from otbr_jax.detectors.trigger_size import DetectionConfig
from otbr_jax.models.registry import ModelConfig
from otbr_jax.plan import Plan, Setup, set_up
from otbr_jax.report.rows import append_row
from otbr_jax.runs.devices import Collective, batch_mesh, collectives, everywhere, replicate, shared
from otbr_jax.runs.networks import Source, open_network
from otbr_jax.runs.provenance import ROOT, provenance
from otbr_jax.types import Batch
from otbr_jax.victims.training import TrainingConfig, TrainingSet, programs

RESULTS = ROOT / "results" / "devices.jsonl"
DEVICES = 8
MODEL = ModelConfig("vgg7_bn", width=8, depth=(1, 1, 1, 1), image_shape=(16, 16, 1))
CLEAN = 512
"""Images that TSBD and training are given."""


def methods() -> dict[str, tuple[Plan, Mapping[str, Any]]]:
    """Plans, and what each is given beside the victim."""
    images = np.random.default_rng(0).integers(0, 256, (CLEAN, 16, 16, 1), dtype=np.uint8)
    clean = Batch(images, np.arange(CLEAN, dtype=np.int32) % 10)
    everything = DisarmSettings(detection=DetectionConfig(threshold=1e-6))  # unlearning, whatever the score
    return {
        "disarm": (disarm.plan(everything), {}),
        "otbr": (otbr.plan(OTBRConfig()), {}),
        "tsbd": (tsbd.DEFENSE.plan(tsbd.TSBDSettings()), {"clean": clean}),
    }


def computed(plan: Plan, given: Mapping[str, Any], setup: Setup, mesh: Any) -> Iterator[tuple[str, Any, Any]]:
    """Every step: its name, its program, its value on the host."""
    values = dict(given)
    for step in plan:
        key, inputs = replicate((jax.random.key(1), plans.select_inputs(step, values)), mesh)
        compute = jax.jit(partial(plans.compute, step, setup), out_shardings=everywhere(mesh))
        program = compute.lower(key=key, **inputs).compile()
        values[step.name] = jax.device_get(program(key=key, **inputs))
        yield step.name, program, values[step.name]


def row_of(program: Any) -> dict[str, Any]:
    """The collectives of a program as plain JSON values."""
    return {kind: Collective(*found)._asdict() for kind, found in collectives(program).items()}


def apart(one: Any, other: Any) -> float:
    """The largest difference between values, as a share of the largest value of its array."""

    def leaf(a: Any, b: Any) -> float:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        return float(np.max(np.where(same, 0.0, np.abs(a - b)), initial=0.0) / max(np.max(np.abs(a), initial=0), 1e-9))

    return max(jax.tree.leaves(jax.tree.map(leaf, one, other)), default=0.0)


def wide() -> dict[str, dict[str, Any]]:
    """The collectives of training and of random unlearning where layers are wide; compiled, not run."""
    subject, mesh = open_network(dataclasses.replace(MODEL, width=64)), batch_mesh()
    setup = set_up(shared(subject.network, mesh), subject.graph)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), subject.like)
    step, *_ = otbr.plan(OTBRConfig())
    key, victim = replicate((jax.random.key(1), variables), mesh)
    compute = jax.jit(partial(plans.compute, step, setup), out_shardings=everywhere(mesh))
    return {
        "training: an epoch, width 64": training(subject, variables),
        "otbr: unlearned, width 64": row_of(compute.lower(key=key, victim=victim).compile()),
    }


def training(subject: Source, variables: Any) -> dict[str, Any]:
    """The collectives of an epoch of training."""
    mesh, config = batch_mesh(), TrainingConfig(batch_size=64, crop_padding=1, flip=True)
    begin, epoch = programs(shared(subject.network, mesh), images=CLEAN, config=config, mesh=mesh)
    images, labels = np.zeros((CLEAN, *MODEL.image_shape), np.uint8), np.zeros(CLEAN, np.int32)
    given = replicate((jax.random.key(0), TrainingSet(images, labels, labels), {}), mesh)
    return row_of(epoch.lower(jax.eval_shape(begin, variables, {}), *given).compile())


def main(arguments: Sequence[str]) -> None:
    """Compiles, runs, prints, writes."""
    del arguments
    jax.config.update("jax_num_cpu_devices", DEVICES)
    origin = provenance()
    subject = open_network(MODEL)
    assert subject.init is not None
    variables = jax.device_get(jax.jit(subject.init)(jax.random.key(0)))
    image = int(np.prod(MODEL.image_shape)) * jnp.float32(0).nbytes
    row: dict[str, Any] = {"devices": DEVICES, "network": "vgg7_bn-w8", "image_bytes": image, "stages": {}}
    compiled = {"training: an epoch": training(subject, variables), **wide()}
    row["stages"] |= {name: {"collectives": entry, "apart": None} for name, entry in compiled.items()}
    for method, (plan, given) in methods().items():
        given = {"victim": variables, **given}
        one, many = batch_mesh(jax.devices()[:1]), batch_mesh()
        alone = {name: value for name, _, value in computed(plan, given, set_up(subject.network, subject.graph), one)}
        setup = set_up(shared(subject.network, many), subject.graph)
        for name, program, value in computed(plan, given, setup, many):
            entry = {"collectives": row_of(program), "apart": apart(alone[name], value)}
            row["stages"][f"{method}: {name}"] = entry
            print(f"{method}: {name:<12}", entry, flush=True)
    append_row(RESULTS, row | origin)


if __name__ == "__main__":
    cli.run(main)
