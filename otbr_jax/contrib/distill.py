"""Distilling the suspicious network into the repaired one, on images made from the network: accuracy without data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from otbr_jax.settings import field, settings
from otbr_jax.steps.finetune import FinetuningConfig, finetune
from otbr_jax.types import Batch, Network, Variables

TARGETS = ("none", "probabilities", "labels")


@settings("distillation")
class DistillationConfig:
    """How the suspicious network is distilled into the fused one."""

    targets: str = field(
        default="none",
        choices=TARGETS,
        doc="the targets on each image: `none` for no distillation, the suspicious network's `probabilities` of all "
        "classes, or its predictions, as `labels`.",
    )
    finetuning: FinetuningConfig = field(
        default=FinetuningConfig(epochs=10, batch_size=50, learning_rate=0.0003, alpha=0.0, schedule="cosine"),
        doc="how it is trained; with `alpha` above 0 activeness-aware, as in TSBD's second stage, but without data.",
    )
    crop_padding: int = field(default=1, at_least=0, unit="pixels", doc="the largest random shift of an image.")


def distill(
    network: Network,
    variables: Variables,
    teacher: Variables,
    images: jax.Array,
    *,
    key: jax.Array,
    config: DistillationConfig,
    augment: Callable[[jax.Array, jax.Array], jax.Array] = lambda images, key: images,
) -> Variables:
    """Fine-tunes a network on the outputs of another one, in evaluation mode. Pure; jits.

    Running statistics stay those of real images, since those of synthetic images differ. Guarantee: touches no data
    but `images`.

    Args:
      network: the functions of both networks.
      variables: the network that is fine-tuned, usually fused.
      teacher: the network whose outputs are the targets, usually the suspicious one.
      images: `[n, h, w, c]` in [0, 1], usually synthetic.
      key: typed PRNG key.
      config: the targets and how the network is trained; with `targets` = "none" it is returned unchanged.
      augment: `(images, key) -> images`, both in [0, 1].

    Returns:
      The network's variables, in the dtypes they had.

    Raises:
      InputError: if there are fewer images than a batch.

    Source: after born-again networks (Furlanello et al., arXiv 1805.04770), on images as in arXiv 1912.08795.
    """
    if config.targets == "none":
        return variables
    logits = network.answer(teacher, images).astype(jnp.float32)
    targets = jax.nn.softmax(logits) if config.targets == "probabilities" else jnp.argmax(logits, axis=-1)
    tuned, _ = finetune(
        dataclasses.replace(network, apply_train=None),
        variables,
        Batch(images, targets),
        key=key,
        config=config.finetuning,
        augment=augment,
    )
    return jax.tree.map(lambda new, old: new.astype(old.dtype), tuned, variables)
