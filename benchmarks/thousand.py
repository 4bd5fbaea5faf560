"""A thousand classes and images of 224 pixels: what every step needs; appends rows to results/thousand.jsonl.

    python -m benchmarks.thousand

ResNet-50 with random weights. Every step of the default and of OTBR as published is compiled, with its settings and
with those that two CPU cores' machine has memory for; memory is what the compiler reserves. Unlearning (a few steps),
pruning and fusion with layers of up to 2,048 neurons also run. The line that is said before a search starts is printed.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
from absl import flags

from launch import cli
from otbr_jax import plan as plans
from otbr_jax.data import sources
from otbr_jax.data.sources import DataConfig
from otbr_jax.defenses.otbr import OTBRConfig
from otbr_jax.defenses.registry import defense
from otbr_jax.inversion import InversionConfig
from otbr_jax.models import registry
from otbr_jax.models.registry import ModelConfig
from otbr_jax.report.rows import append_row
from otbr_jax.runs import estimate
from otbr_jax.runs.memory import megabytes
from otbr_jax.runs.networks import open_network
from otbr_jax.runs.provenance import ROOT, provenance
from otbr_jax.steps.unlearn import UnlearningConfig
from otbr_jax.steps.unlearn_triggers import TriggerUnlearningConfig
from otbr_jax.studies.repair_config import repair_config

RESULTS = flags.DEFINE_string("results", str(ROOT / "results" / "thousand.jsonl"), "File of the rows.")
ONLY = flags.DEFINE_list("cases", ["0", "1", "2", "3"], "Which of `CASES`.")
MODEL = ModelConfig("resnet50", image_shape=(224, 224, 3), num_classes=1000)
OTHERS = {"model": MODEL, "data": DataConfig(name="none")}
KEY = jax.random.key(0)
DISARM = ("procedural", "screened", "minimal", "margins", "disarmed")
LESS = UnlearningConfig(batch_size=32, steps=3)
CASES = (
    ("as they are", DISARM, repair_config(defense="disarm", **OTHERS)),
    (
        "inversion.among=20, unlearning.batch_size=16",
        ("screened", "minimal", "disarmed"),
        repair_config(
            defense="disarm",
            inversion=InversionConfig(among=20),
            unlearning=TriggerUnlearningConfig(batch_size=16),
            **OTHERS,
        ),
    ),
    ("as they are", ("unlearned", "fused"), repair_config(**OTHERS)),
    (
        "otbr.unlearning.batch_size=32, steps=3",
        ("unlearned", "scores", "pruned", "fused"),
        repair_config(otbr=OTBRConfig(unlearning=LESS), **OTHERS),
    ),
)
"""Settings in words, which steps are of interest, and the settings."""


def rows(settings: str, names: Sequence[str], config: Any) -> Iterator[Mapping[str, Any]]:
    """A row for each of these steps; those of OTBR run where its settings are small."""
    subject = open_network(MODEL)
    network = dataclasses.replace(subject.network, prepare=partial(sources.preprocess, config=config.victim.data))
    setup = plans.set_up(network, subject.graph, layers=defense(config.defense).layers(config.method))
    runs = config.defense == "otbr" and config.method.otbr.unlearning == LESS
    values: dict[str, Any] = {"victim": jax.jit(registry.build(MODEL)[1])(KEY)}
    for step in defense(config.defense).plan(config.method):
        said = estimate.announce(step, setup, values["victim"])
        taken = plans.select_inputs(step, values)
        program = jax.jit(partial(plans.compute, step, setup))
        key, seconds = plans.step_key(KEY, step), None
        if step.name in names:
            compiled = program.lower(key=key, **taken).compile()
        if runs and step.name in names:
            began = time.perf_counter()
            values[step.name] = jax.block_until_ready(compiled(key=key, **taken))
            seconds = round(time.perf_counter() - began, 1)
        else:
            values[step.name] = jax.eval_shape(program, key=key, **taken)
        if step.name in names:
            needed = megabytes(compiled)
            yield {
                "defense": config.defense,
                "step": step.name,
                "settings": settings,
                "network": "resnet50",
                "classes": MODEL.num_classes,
                "side": MODEL.image_shape[0],
                "gigabytes": None if needed is None else round(needed / 1e3, 3),
                "seconds": seconds,
                "said": said,
            }


def main(arguments: Sequence[str]) -> None:
    del arguments
    origin = provenance()
    for index in ONLY.value:
        for row in rows(*CASES[int(index)]):
            print(row, flush=True)
            append_row(pathlib.Path(RESULTS.value), row | origin)


if __name__ == "__main__":
    cli.run(main)
