"""Disarm with a few clean images: the same verdict, and lessons on clean images beside procedural pictures."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from otbr_jax.defenses import disarm
from otbr_jax.defenses.disarm import Disarmed, DisarmSettings, Unlearning
from otbr_jax.plan import Plan, Setup, Step, needs
from otbr_jax.steps.predictions import predict
from otbr_jax.steps.procedural import PredictedImages
from otbr_jax.types import Batch, Network, Variables


def beside(batch: Batch, clean: jax.Array, network: Network, variables: Variables) -> Batch:
    """Procedural pictures and clean images in turn, as many of either; with what the network answers them with.

    Args:
      batch: `[n, h, w, c]` in [0, 1], and the answers to them, `[n]`.
      clean: clean images, uint8 `[m, h, w, c]`; where m < n they are repeated, where m > n the rest is left out.
      network: the functions of the network.
      variables: the suspicious network's variables.
    """
    images = clean.astype(jnp.float32) / 255
    count = len(batch.labels)
    places = jnp.arange(count) % len(images)

    def in_turn(ours: jax.Array, theirs: jax.Array) -> jax.Array:
        return jnp.stack([ours, theirs[places].astype(ours.dtype)], axis=1).reshape(2 * count, *ours.shape[1:])

    return Batch(
        in_turn(batch.images, images), in_turn(batch.labels, predict(network, variables, images, batch_size=200))
    )


def disarm_suspect(
    setup: Setup, settings: Unlearning, *, clean: Batch, procedural: PredictedImages, victim: Variables, **rest: Any
) -> Disarmed:
    """As `disarm.disarm_suspect`, with clean images among the pictures."""
    mixed = procedural._replace(batch=beside(procedural.batch, clean.images, setup.network, victim))
    return disarm.disarm_suspect(setup, settings, procedural=mixed, victim=victim, **rest)


def plan(config: DisarmSettings) -> Plan:
    """The plan of `disarm`, whose lessons take the clean images too."""

    def with_images(step: Step) -> Step:
        if step.name != "disarmed":
            return step
        return dataclasses.replace(step, run=disarm_suspect, needs={**step.needs, **needs("clean")})

    return tuple(map(with_images, disarm.plan(config)))


DEFENSE = dataclasses.replace(disarm.DEFENSE, name="disarm_clean", data="clean images", plan=plan)
