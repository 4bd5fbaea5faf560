"""Whole runs of the defences that fine-tune, on one tiny victim: reports, memory against disk, bad input."""

import atexit
import dataclasses
import functools
import json
import pathlib
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_goldens import opened

from otbr_jax import InputError
from otbr_jax import plan as plans
from otbr_jax.attacks.badnets import BadNetsConfig
from otbr_jax.attacks.registry import AttackConfig
from otbr_jax.data.clean import CleanConfig, clean_augmentation
from otbr_jax.data.sources import DataConfig
from otbr_jax.defenses import registry as methods
from otbr_jax.models.registry import ModelConfig
from otbr_jax.steps.finetune import FinetuningConfig
from otbr_jax.studies.repair import repair
from otbr_jax.studies.repair_config import repair_config, repaired_by
from otbr_jax.studies.results import summarize
from otbr_jax.victims.train import train_victim
from otbr_jax.victims.training import TrainingConfig

VICTIM = repair_config(
    model=ModelConfig(name="vgg7_bn", width=4, depth=(1, 1, 1, 1), image_shape=(8, 8, 1)),
    attack=AttackConfig(badnets=BadNetsConfig(size=2)),
    training=TrainingConfig(epochs=2, batch_size=128),
)
BRIEF = FinetuningConfig(epochs=2, batch_size=32, alpha=0.0, weight_decay=5e-4, schedule="cosine")
CLEAN = CleanConfig(crop_padding=1)


def run(defense, folder, **own):
    """(result, summary, report) of a whole run; the victim is trained by the first one alone."""
    config = repaired_by(defense, VICTIM, **{"clean": CLEAN} | own)
    shutil.copytree(trained(), folder)
    result = repair(config, folder, devices=jax.local_devices()[:1])
    assert result.stages["victim"].resumed
    summary = summarize(result)
    assert json.loads((folder / "metrics.json").read_text()) == summary
    assert (summary["clean"] or "").startswith("65 clean images") == (methods.defense(config.defense).data != "none")
    return result, summary, (folder / "report.html").read_text()


@functools.cache
def trained():
    """The working directory in which the victim was trained."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="otbr_jax_tests_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    train_victim(VICTIM.victim, folder, devices=jax.local_devices()[:1])
    return folder


def assert_memory_equals_disk(result):
    """The same plan in memory, with no runner, gives the same bits."""
    config = result.config
    network, graph, variables, clean = opened(config, result)
    augment = clean_augmentation(config.clean)
    setup = plans.set_up(network, graph, layers=methods.defense(config.defense).layers(config.method), augment=augment)
    given = {"victim": variables, **methods.defense(config.defense).given(config.method, clean, config.victim.seed)}
    found = plans.run(
        methods.defense(config.defense).plan(config.method), setup, given, key=jax.random.key(config.victim.seed)
    )
    for name, value in found.items():
        disk = result.stages[name].value
        for ours, theirs in zip(*map(jax.tree.leaves, (value, disk)), strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=name)


def assert_bad_input_is_one_line(defense, folder, *, group, own):
    """Too few images, and none; `own` makes settings of a `FinetuningConfig`. Nothing is computed for it."""

    def refuse(message, tuning=BRIEF, **changes):
        config = repaired_by(defense, VICTIM, **{"clean": CLEAN} | own(tuning) | changes)
        with pytest.raises(InputError, match=message) as refused:
            repair(config, folder, devices=jax.local_devices()[:1])
        assert "\n" not in str(refused.value)

    large = dataclasses.replace(BRIEF, batch_size=66)
    refuse(rf"^{group}.batch_size: expected at most 65, as many as there are clean images, found 66$", large)
    refuse("^model.checkpoint: expected a checkpoint, since", data=DataConfig(name="none"))
    refuse("^clean.fraction: expected at least one image, found 0.0001", clean=CleanConfig(fraction=0.0001))


def moved_params(result):
    """How far each parameter of the repaired network is from the victim's, the largest."""
    before, after = result.stages["victim"].value["variables"]["params"], result.variables["params"]
    return [float(jnp.max(jnp.abs(a - b))) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True)]
