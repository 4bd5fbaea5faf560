"""Disarm with a few clean images: the same verdict, but unlearning uses them beside procedural images."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from otbr_jax.defenses import disarm
from otbr_jax.defenses.disarm import Disarmed, DisarmSettings, UnlearningSettings
from otbr_jax.plan import Plan, Setup, Step, needs
from otbr_jax.steps.predictions import predict
from otbr_jax.steps.procedural import PredictedImages
from otbr_jax.types import Batch, Network, Variables


def mix(batch: Batch, clean: jax.Array, network: Network, variables: Variables) -> Batch:
    """Procedural and clean images alternating, as many of either, with their predictions.

    Args:
      batch: procedural images `[n, h, w, c]` in [0, 1], and their predictions, `[n]`.
      clean: clean images, uint8 `[m, h, w, c]`; where m < n they are repeated, where m > n the rest is left out.
      network: the functions of the network.
      variables: the suspicious network's variables.
    """
    images = clean.astype(jnp.float32) / 255
    count = len(batch.labels)
    places = jnp.arange(count) % len(images)

    def alternate(ours: jax.Array, theirs: jax.Array) -> jax.Array:
        return jnp.stack([ours, theirs[places].astype(ours.dtype)], axis=1).reshape(2 * count, *ours.shape[1:])

    return Batch(
        alternate(batch.images, images), alternate(batch.labels, predict(network, variables, images, batch_size=200))
    )


def unlearn_detected(
    setup: Setup,
    settings: UnlearningSettings,
    *,
    clean: Batch,
    procedural: PredictedImages,
    victim: Variables,
    **rest: Any,
) -> Disarmed:
    """As `disarm.unlearn_detected`, with clean images among the procedural ones."""
    mixed = procedural._replace(batch=mix(procedural.batch, clean.images, setup.network, victim))
    return disarm.unlearn_detected(setup, settings, procedural=mixed, victim=victim, **rest)


def plan(config: DisarmSettings) -> Plan:
    """The plan of `disarm`, whose unlearning takes the clean images too."""

    def with_clean(step: Step) -> Step:
        if step.name != "disarmed":
            return step
        return dataclasses.replace(step, run=unlearn_detected, needs={**step.needs, **needs("clean")})

    return tuple(map(with_clean, disarm.plan(config)))


DEFENSE = dataclasses.replace(disarm.DEFENSE, name="disarm_clean", data="clean images", plan=plan)
