"""Victims per minute against stack size; appends a row for each task to results/stacking.jsonl.

    python -m benchmarks.stacking --tasks=training,otbr,disarm --sizes=1,2,4,8

Narrow networks on digits. `training` is some epochs on BadNets-poisoned images; `otbr` repairs those victims as
published; `disarm` does with few steps of each kind. A stack of 1 runs the programs that a network alone has. Sizes
take turns, and medians count. Compilation is left out. Seconds of the processor, all cores
together, do not depend on what else the machine does.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from launch import cli
from otbr_jax import plan as plans
from otbr_jax import trace
from otbr_jax.attacks import poisoning
from otbr_jax.attacks.registry import AttackConfig, trigger
from otbr_jax.data.sources import DataConfig, load, preprocess
from otbr_jax.defenses import disarm, otbr
from otbr_jax.defenses.disarm import DisarmSettings
from otbr_jax.defenses.otbr import OTBRConfig
from otbr_jax.detectors.trigger_size import ImagesConfig
from otbr_jax.inversion import InversionConfig
from otbr_jax.models.registry import ModelConfig, build
from otbr_jax.plan import Plan
from otbr_jax.report.rows import append_row
from otbr_jax.runs.devices import batch_mesh
from otbr_jax.runs.provenance import ROOT, provenance
from otbr_jax.steps.margin import MarginConfig
from otbr_jax.steps.unlearn_triggers import TriggerUnlearningConfig
from otbr_jax.types import Network, Variables
from otbr_jax.victims import training
from otbr_jax.victims.stacking import train_stack
from otbr_jax.victims.training import TrainingConfig, TrainingSet
from otbr_jax.victims.victims import attacker_goals

RESULTS = ROOT / "results" / "stacking.jsonl"
TASKS = flags.DEFINE_list("tasks", ["training", "otbr", "disarm"], "What is measured.")
SIZES = flags.DEFINE_list("sizes", ["1", "2", "4", "8"], "Networks in a stack.")
NAME = flags.DEFINE_string("network", "vgg7_bn", "The network.")
WIDTH = flags.DEFINE_integer("width", 4, "Its width.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each size.")

TRAINING = TrainingConfig(epochs=8)
IMAGES = 640
FEW = DisarmSettings(
    images=ImagesConfig(made=300, images=200),
    inversion=InversionConfig(steps=4, starts=16),
    margin=MarginConfig(steps=8),
    unlearning=TriggerUnlearningConfig(
        rounds=1, triggers=2, steps=8, batch_size=32, inversion=InversionConfig(steps=4, starts=16)
    ),
)
PLANS = {"otbr": otbr.plan(OTBRConfig()), "disarm": disarm.plan(FEW)}


@dataclasses.dataclass(frozen=True)
class Victims:
    """Networks of one kind: where each starts, what each learns from, and its key."""

    network: Network
    starts: list[Variables]
    sets: list[TrainingSet]
    keys: jax.Array


def make(count: int) -> Victims:
    """So many victims of BadNets, of other seeds."""
    model = ModelConfig(NAME.value, width=WIDTH.value, image_shape=(16, 16, 1), num_classes=10)
    config, attack = DataConfig(name="digits", train_images=IMAGES), AttackConfig(name="badnets")
    network, init = build(model)
    dataset = load(config, image_shape=model.image_shape, num_classes=10)
    assert dataset is not None
    assert dataset.train is not None
    images, labels = map(jnp.asarray, dataset.train)
    keys = jax.random.split(jax.random.key(0), count)

    def poison(key: jax.Array) -> TrainingSet:
        poisoned = poisoning.poison(images, labels, trigger(attack, {}), key=key, config=attack, num_classes=10)
        return TrainingSet(poisoned.images, poisoned.labels, attacker_goals(attack, labels, 10))

    prepared = dataclasses.replace(network, prepare=partial(preprocess, config=config))
    start = jax.jit(init)
    return Victims(prepared, [start(key) for key in keys], [poison(key) for key in keys], keys)


def an_epoch(victims: Victims, size: int) -> Callable[[], Any]:
    """Trains the first victims on, one epoch a call."""
    mesh, keys = batch_mesh(jax.devices()[:1]), victims.keys[:size]
    start, data = plans.stack_trees(victims.starts[:size]), plans.stack_trees(victims.sets[:size])
    axes: TrainingSet | None = data.axes()
    if size == 1:
        (start, data, keys), axes = plans.tree_entry((start, data, keys), 0), None
    begin, epoch = training.programs(victims.network, images=IMAGES, config=TRAINING, mesh=mesh, axes=axes)
    carry = begin(start, {})

    def task() -> Any:
        nonlocal carry
        carry, loss = epoch(carry, keys, data, {})
        return loss

    return task


def a_repair(plan: Plan, victims: Victims, trained: Sequence[Variables], size: int) -> Callable[[], Any]:
    """Repairs the first victims."""
    like = jax.ShapeDtypeStruct((2, *victims.network.image_shape), jnp.float32)
    setup = plans.set_up(victims.network, trace(victims.network.apply, trained[0], like))
    if size == 1:
        return partial(plans.programs(plan, setup), {"victim": trained[0]}, key=victims.keys[0])
    given = {"victim": plans.stack_trees(trained[:size])}
    return partial(plans.stacked_programs(plan, setup), given, {}, keys=victims.keys[:size])


def timed(task: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and seconds of the processor."""
    began = time.perf_counter(), time.process_time()
    jax.block_until_ready(task())
    return time.perf_counter() - began[0], time.process_time() - began[1]


def measured(tasks: dict[int, Callable[[], Any]], *, times: int) -> dict[str, dict[str, float]]:
    """For each size, victims per minute, and seconds of the processor per victim; a victim takes so many calls."""
    for task in tasks.values():
        timed(task)  # compiles
    took: dict[int, list[tuple[float, float]]] = {size: [] for size in tasks}
    for _ in range(ROUNDS.value):
        for size, task in tasks.items():
            took[size].append(timed(task))
    wall = {size: times * statistics.median(seconds for seconds, _ in took[size]) / size for size in tasks}
    cpu = {size: times * statistics.median(seconds for _, seconds in took[size]) / size for size in tasks}
    return {
        "victims_per_minute": {str(size): round(60 / seconds, 2) for size, seconds in wall.items()},
        "cpu_seconds_per_victim": {str(size): round(seconds, 3) for size, seconds in cpu.items()},
    }


def main(arguments: Sequence[str]) -> None:
    del arguments
    origin, sizes = provenance(), [int(size) for size in SIZES.value]
    victims = make(max(sizes))
    mesh, trained = batch_mesh(jax.devices()[:1]), list[Variables]()
    for name in TASKS.value:
        if name == "training":
            costs = measured({size: an_epoch(victims, size) for size in sizes}, times=TRAINING.epochs)
        else:
            if not trained:
                made = train_stack(
                    victims.network, victims.starts, victims.sets, keys=victims.keys, config=TRAINING, mesh=mesh
                )
                trained = [one.variables for one in made]
            costs = measured({size: a_repair(PLANS[name], victims, trained, size) for size in sizes}, times=1)
        row = {"network": f"{NAME.value}-w{WIDTH.value}", "dataset": "digits", "seed": 0, "task": name}
        row |= {"epochs": TRAINING.epochs, "images": IMAGES, "rounds": ROUNDS.value, "sizes": sizes}
        append_row(RESULTS, row | costs | origin)
        print(name, costs, flush=True)


if __name__ == "__main__":
    cli.run(main)
