"""What studies of victims share: the settings of one victim, batches of images, its metrics, settings in a row."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from typing import Any

import jax

from otbr_jax.data.sources import Images
from otbr_jax.experiments import evaluation, parallel
from otbr_jax.experiments.config import VictimConfig
from otbr_jax.experiments.runs import Run
from otbr_jax.experiments.victims import Victim, test_set
from otbr_jax.metrics import Metrics
from otbr_jax.types import Batch, Variables


def victim_config(config: VictimConfig, **changes: Any) -> VictimConfig:
    """The settings of a victim alone, out of those of a study, with these fields changed."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(VictimConfig)}
    return VictimConfig(**fields | changes)


def drawn(key: jax.Array, *, images: Batch, size: int, prepare: Callable[[jax.Array], jax.Array]) -> Batch:
    """A batch of `size` uint8 images, drawn uniformly and with replacement, as the network takes them."""
    chosen = jax.random.randint(key, (size,), 0, len(images.labels))
    return Batch(prepare(images.images[chosen]), images.labels[chosen])


def victim_metrics(run: Run, victim: Victim, test: Images) -> Metrics:
    """ACC, ASR and RA of a victim; without an attack the latter two are about untriggered images."""
    tested = test_set(run, test, victim)

    @jax.jit
    def measure(variables: Variables, tested: evaluation.TestSet) -> Metrics:
        return evaluation.measure(run.network, variables, tested, prepare=run.prepare, mesh=run.mesh)

    return measure(*parallel.replicate((victim.stage.value["variables"], tested), run.mesh))


def row_settings(config: VictimConfig) -> dict[str, Any]:
    """All settings of a study as plain JSON values for a row of results, without the folders of one machine."""
    settings: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    settings["model"] |= {"checkpoint": os.path.basename(config.model.checkpoint)}
    settings["data"] |= {"path": os.path.basename(config.data.path), "data_dir": ""}
    return settings


def row_subject(config: VictimConfig) -> dict[str, Any]:
    """What a row of results is about: `dataset`, `network`, and `file`, the checkpoint's name or None."""
    file = os.path.basename(config.model.checkpoint)
    return {
        "dataset": config.data.name,
        "network": f"{config.model.name}-w{config.model.width}",
        "file": file or None,
    }
