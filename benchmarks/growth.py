"""How time and memory of every stage grow; appends rows to results/growth.jsonl and draws docs/growth.png.

    python -m benchmarks.growth

A small PreAct-ResNet with random weights. One factor at a time moves away from `BASE`: width, depth, batch, classes and
the side of images; and for transport the neurons of a layer. Seconds are CPU time of all cores, which does not depend
on other programs. They are of one step (unlearning, training, trigger inversion by one family for all classes), or of
the whole (procedural images, fusion, an unlearning round with two steps of each kind). The faster of two runs counts.
Memory is what the compiler reserves: arguments, results and temporaries. An exponent is the slope of a line through the
logarithms: 1 where twice as much takes twice as long.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from launch import cli
from otbr_jax import plan as plans
from otbr_jax.defenses import otbr
from otbr_jax.defenses.otbr import OTBRConfig
from otbr_jax.detectors.trigger_size import ImagesConfig, make_procedural
from otbr_jax.files import write_figure
from otbr_jax.inversion import InversionConfig, ScreenedClasses, minimal_triggers
from otbr_jax.models import registry
from otbr_jax.models.registry import ModelConfig
from otbr_jax.numerics.convolutions import channels_last
from otbr_jax.plan import Setup
from otbr_jax.report.growth import growth_figure
from otbr_jax.report.rows import append_row, parse
from otbr_jax.runs.memory import megabytes
from otbr_jax.runs.networks import open_network
from otbr_jax.runs.provenance import ROOT, provenance
from otbr_jax.steps import transport
from otbr_jax.steps.fuse import FusionConfig
from otbr_jax.steps.margin import MarginConfig, maximum_margins
from otbr_jax.steps.transport import TransportConfig
from otbr_jax.steps.unlearn import UnlearningConfig
from otbr_jax.steps.unlearn_triggers import TriggersToUnlearn, TriggerUnlearningConfig, unlearn_triggers
from otbr_jax.triggers import FAMILIES, FamilySwitch
from otbr_jax.types import Batch, split

RESULTS = flags.DEFINE_string("results", str(ROOT / "results" / "growth.jsonl"), "File of the rows.")
FIGURE = flags.DEFINE_string("figure", str(ROOT / "docs" / "growth.png"), "The drawing.")
ONLY = flags.DEFINE_list("factors", [], "Those that grow; by default all.")
STAGES = flags.DEFINE_list("stages", [], "Those that are measured; by default all.")
BASE = {"width": 16, "depth": 10, "batch": 32, "classes": 10, "side": 16}
FACTORS = {
    "width": (8, 16, 32),
    "depth": (10, 18),
    "batch": (16, 32, 64),
    "classes": (10, 40, 160),
    "side": (8, 16, 32),
}
UNMOVED = {"fusion": ("batch", "classes", "side"), "procedural images": ("width", "depth", "batch", "classes")}
NEURONS = (128, 512, 2048)
FEW = ("patch", "additive", "generator")
KEY = jax.random.key(0)
SINKHORN = TransportConfig(threshold=1e-9, max_iterations=100)  # always as many iterations

Program = tuple[Callable[..., Any], tuple[Any, ...], int]
"""A function, its arguments, and how many steps it takes."""


def programs(*, width: int, depth: int, batch: int, classes: int, side: int) -> dict[str, Program]:
    """The stages of one network, by name."""
    model = ModelConfig(f"preact_resnet{depth}", width=width, image_shape=(side, side, 3), num_classes=classes)
    subject = open_network(model)
    network = subject.network
    setup = plans.set_up(network, subject.graph)
    variables = jax.jit(registry.build(model)[1])(KEY)
    images = jax.random.uniform(KEY, (batch, side, side, 3))
    labelled = Batch(images, jnp.arange(batch) % classes)
    switch = FamilySwitch(tuple(FAMILIES[name] for name in FEW), network.image_shape)
    search = InversionConfig(steps=1, images=batch // 2, starts=8, finalists=1)
    every = ScreenedClasses(jnp.arange(classes), jnp.zeros((len(FEW), classes), jnp.int32))
    margin = MarginConfig(steps=2, images=batch // 4)

    def invert(variables: Any, batch: Batch) -> Any:
        return minimal_triggers(network, variables, batch, switch, every, key=KEY, config=search)

    def margins(variables: Any) -> Any:
        return maximum_margins(network, variables, key=KEY, config=margin)

    return {
        "training": (partial(train, network), (variables, labelled), 2),
        "unlearning": (partial(unlearn, setup, UnlearningConfig(steps=2, batch_size=batch)), (variables,), 2),
        "fusion": (partial(fuse, setup), (variables,), 1),
        "procedural images": (partial(make_images, setup), (variables,), 1),
        "trigger inversion": (invert, (variables, labelled), len(FEW)),
        "maximum margins": (margins, (variables,), 2),
        "trigger unlearning": (partial(unlearning_round, setup, switch, batch), (variables, labelled), 1),
    }


def train(network: Any, variables: Any, batch: Batch) -> Any:
    """Two steps of SGD with momentum."""
    optimizer = optax.sgd(0.01, momentum=0.9)

    def loss(params: Any, state: Any) -> tuple[jax.Array, Any]:
        logits, state = network.train({"params": params, **state}, network.prepare(batch.images))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)), state

    gradient = channels_last(jax.grad(loss, has_aux=True))

    def step(carry: Any, _: None) -> tuple[Any, None]:
        params, state, opt_state = carry
        grads, state = gradient(params, state)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), state, opt_state), None

    params, state = split(variables)
    return jax.lax.scan(step, (params, state, optimizer.init(params)), None, length=2)[0]


def unlearn(setup: Setup, config: UnlearningConfig, variables: Any) -> Any:
    return otbr.unlearn_noise(setup, config, victim=variables, key=KEY, report=None)


def fuse(setup: Setup, variables: Any) -> Any:
    """Prunes and fuses, with the scores 1, 2, 3, ..., which do not change the time."""
    scores = {layer.name: jnp.arange(1.0, layer.neurons + 1) for layer in setup.layers}
    config = OTBRConfig(fusion=FusionConfig(transport=SINKHORN))
    pruned = otbr.prune_share(setup, config.gamma, victim=variables, scores=scores)
    return otbr.fuse_pruned(
        setup, config.fusion, victim=variables, scores=scores, pruned=pruned, key=KEY, report=None
    ).variables


def make_images(setup: Setup, variables: Any) -> Any:
    return make_procedural(setup, ImagesConfig(made=128, images=64), victim=variables, key=KEY, report=None)


def unlearning_round(setup: Setup, switch: FamilySwitch, batch: int, variables: Any, labelled: Batch) -> Any:
    """An unlearning round against additive triggers."""
    config = TriggerUnlearningConfig(
        rounds=1, triggers=2, inversion=InversionConfig(steps=2, images=batch // 2, starts=8), steps=2, batch_size=batch
    )
    # The most predicted class: its triggers always work, so that there is always something to unlearn.
    target = jnp.argmax(jnp.sum(setup.network.answer(variables, labelled.images), axis=0))[None]
    additive, large = jnp.ones(1, jnp.int32), jnp.array([0.4])
    closing = TriggersToUnlearn(additive, target, large, large, jnp.zeros((1, switch.length)), jnp.array([True]))
    return unlearn_triggers(setup.network, variables, labelled, switch, closing, key=KEY, config=config)


def transported(neurons: int) -> Program:
    """One plan between two layers of so many neurons."""
    rows = jax.random.normal(KEY, (2, neurons, 64))
    even = jnp.full(neurons, 1 / neurons)

    def plan(rows: jax.Array) -> Any:
        return transport.plan(transport.cost_matrix(*rows), even, even, config=SINKHORN)

    return plan, (rows,), 1


def measured(program: Program) -> tuple[float, float | None]:
    """CPU seconds of a step, and megabytes."""
    function, arguments, steps = program
    compiled = jax.jit(function).lower(*arguments).compile()
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(2):
        began = time.process_time()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.process_time() - began)
    return min(times) / steps, megabytes(compiled)


def exponent(values: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of a line through the logarithms."""
    return float(np.polyfit(np.log(values), np.log(costs), 1)[0])


def row(stage: str, factor: str, values: Sequence[int], points: Sequence[tuple[float, float | None]]) -> dict[str, Any]:
    seconds, memory = zip(*points, strict=True)
    return {
        "stage": stage,
        "factor": factor,
        "values": [*values],
        "cpu_seconds": [round(each, 5) for each in seconds],
        "megabytes": [None if each is None else round(each, 2) for each in memory],
        "exponent_time": round(exponent(values, seconds), 2),
        "exponent_memory": None if None in memory else round(exponent(values, memory), 2),
        "base": BASE,
    }


def rows() -> Iterator[Mapping[str, Any]]:
    """A row for every stage and factor."""
    wanted = ONLY.value or [*FACTORS, "neurons"]
    if "neurons" in wanted:
        yield row("transport", "neurons", NEURONS, [measured(transported(neurons)) for neurons in NEURONS])
    known = {
        name: measured(program)
        for name, program in programs(**BASE).items()
        if not STAGES.value or name in STAGES.value
    }
    for factor, values in ((name, FACTORS[name]) for name in FACTORS if name in wanted):
        points: dict[str, list[tuple[float, float | None]]] = {}
        for value in values:
            stages = {} if value == BASE[factor] else programs(**BASE | {factor: value})
            for stage in known:
                if factor not in UNMOVED.get(stage, ()):
                    here = measured(stages[stage]) if stages else known[stage]
                    points.setdefault(stage, []).append(here)
        for stage, cost in points.items():
            yield row(stage, factor, values, cost)


def main(arguments: Sequence[str]) -> None:
    del arguments
    origin = provenance()
    for row in rows():
        print(row["stage"], row["factor"], row["cpu_seconds"], row["megabytes"], flush=True)
        append_row(pathlib.Path(RESULTS.value), row | origin)
    drawn = parse(pathlib.Path(RESULTS.value).read_text(encoding="utf-8"), name=RESULTS.value)
    write_figure(pathlib.Path(FIGURE.value), growth_figure(drawn), name="--figure", dpi=130, facecolor="white")


if __name__ == "__main__":
    cli.run(main)
