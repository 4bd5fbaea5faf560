"""Variants of OTBR's parts, each against the published one: what the grid gamma x lambda holds at best.

    python -m launch.bench --grid=configs/bench/variants.py --workdir=runs/cpu --results=results/bench_variants.jsonl

The victims of `configs/bench/otbr_plus.py`, reloaded in its working directory. Each variant is one setting of
`configs/otbr.py`'s.
"""

import dataclasses
from collections.abc import Callable

from configs.bench import otbr_plus
from otbr_jax.defenses.otbr import OTBRConfig
from otbr_jax.defenses.otbr_plus import SweepConfig
from otbr_jax.steps.distill import DistillationConfig
from otbr_jax.steps.finetune import FinetuningConfig
from otbr_jax.steps.fuse import FusionConfig
from otbr_jax.steps.unlearn import UnlearningConfig
from otbr_jax.studies.bench import Grid
from otbr_jax.studies.repair_config import AnyRepairConfig


def otbr(**settings: object) -> Callable[[AnyRepairConfig], AnyRepairConfig]:
    """One setting of the method changed."""
    return lambda config: dataclasses.replace(config, otbr=OTBRConfig(**settings))


def distilled(targets: str, *, alpha: float) -> Callable[[AnyRepairConfig], AnyRepairConfig]:
    """The fused network taught on images made from the suspicious one."""
    finetuning = dataclasses.replace(DistillationConfig().finetuning, alpha=alpha)
    taught = DistillationConfig(targets=targets, finetuning=finetuning)
    return lambda config: dataclasses.replace(config, distillation=taught)


VARIANTS = {
    "published": otbr(),
    "100 steps of unlearning": otbr(unlearning=UnlearningConfig(steps=100)),
    "NWC normalised layer by layer": otbr(ranking="layer"),
    "half of the weights": otbr(m=0.5),
    "only layers with pruned neurons": otbr(fusion=FusionConfig(layers="pruned")),
    "norms kept": otbr(fusion=FusionConfig(keep_norms=True)),
    "one plan per addition": otbr(fusion=FusionConfig(tied=True)),
    "channels' vectors aligned": otbr(fusion=FusionConfig(aligned="vectors")),
    "vectors, shortcuts and classifier aligned": otbr(fusion=FusionConfig(aligned="neighbours")),
    "self-distillation": distilled("probabilities", alpha=0.0),
    "activeness-aware fine-tuning": distilled("labels", alpha=FinetuningConfig().alpha),
}
SWEEP = SweepConfig(gamma=(0.02, 0.05, 0.1, 0.15, 0.2, 0.3), lam=(0.5, 0.75, 1.0))


def get_grid() -> Grid:
    """Every variant on every victim; networks without additions have no use for one plan for each."""
    return Grid(
        "variants",
        tuple(
            dataclasses.replace(
                victim,
                config=change(dataclasses.replace(victim.config, sweep=SWEEP)),
                variant=name,
            )
            for name, change in VARIANTS.items()
            for victim in otbr_plus.victims()
            if name != "one plan per addition" or victim.config.model.name != "vgg7_bn"
        ),
    )
