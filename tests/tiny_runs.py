"""Settings that tests of whole runs share: one network and one training, so that programs are compiled once."""

import jax

from otbr_jax import OTBRConfig, UnlearningConfig
from otbr_jax.attacks.badnets import BadNetsConfig
from otbr_jax.attacks.registry import AttackConfig
from otbr_jax.contrib import otbr_plus
from otbr_jax.data.clean import CleanConfig
from otbr_jax.defenses import tsbd
from otbr_jax.defenses.tsbd import TSBDConfig
from otbr_jax.models.registry import ModelConfig
from otbr_jax.steps.finetune import FinetuningConfig
from otbr_jax.steps.select import SelectionConfig
from otbr_jax.steps.unlearn import CleanUnlearningConfig
from otbr_jax.studies.repair import repair
from otbr_jax.studies.repair_config import repair_config
from otbr_jax.victims.training import TrainingConfig

DEVICES = jax.local_devices()[:1]
"""One of the eight."""
VICTIM = {
    "model": ModelConfig(name="vgg7_bn", width=8, depth=(1, 1, 1, 1), image_shape=(8, 8, 1)),
    "attack": AttackConfig(badnets=BadNetsConfig(size=2)),
    "training": TrainingConfig(epochs=4, batch_size=32),
}
OTBR = repair_config(
    **VICTIM,
    otbr=OTBRConfig(unlearning=UnlearningConfig(steps=3, batch_size=16), gamma=0.2),
    sweep=otbr_plus.SweepConfig(gamma=(0.05, 0.2), lam=(0.5, 1.0)),
)
N, M = (0.1, 0.4), (0.5, 1.0)
TSBD = repair_config(
    **VICTIM,
    defense="tsbd",
    clean=CleanConfig(crop_padding=1),
    tsbd=TSBDConfig(
        unlearning=CleanUnlearningConfig(max_epochs=20, batch_size=32, learning_rate=3e-3),
        finetuning=FinetuningConfig(epochs=4, batch_size=32),
    ),
    selection=SelectionConfig(n=N, m=M, folds=2),
    sweep=tsbd.SweepConfig(n=N, m=M),
)


def run(workdir, config=OTBR, devices=1, **options):
    return repair(config, workdir, devices=jax.local_devices()[:devices], **options)


def digests(result):
    return {name: stage.digest for name, stage in result.stages.items()}


def resumed(result):
    return {name for name, stage in result.stages.items() if stage.resumed}
