"""Estimates how long a step will take, and prints a line if that is long."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from otbr_jax.numerics.convolutions import channels_last
from otbr_jax.numerics.flops import flops_of
from otbr_jax.plan import Setup, Step
from otbr_jax.types import Variables

log = logging.getLogger(__name__)

_WORTH = 2e13  # operations: a step with fewer is not worth a timed batch
_LONG = 600.0  # seconds
_BATCH = 16  # images of a timed batch


def announce(step: Step, setup: Setup, variables: Variables | None, *, devices: int = 1) -> str | None:
    """Logs and returns one line if a step will take more than ten minutes, with the steps whose work it includes.

    The estimate is a timed batch of this network's logits and gradients on the device that will run the step. For small
    networks operations are only counted, and nothing is compiled.

    Args:
      step: has its amount of work in `Shown.work`.
      setup: of the run, for one device.
      variables: the network's; None if there are none yet.
      devices: how many devices will share the work.
    """
    if step.shown.work is None or variables is None:
        return None
    work = step.shown.work(setup)
    if flops_of(setup.network, variables).operations * (work.predictions + 2 * work.gradients) < _WORTH:
        return None
    forward, gradient = _time(setup, variables)
    seconds = (work.predictions * forward + work.gradients * gradient) / devices
    if seconds < _LONG:
        return None
    line = f"{work.what} will take about {_duration(seconds)} on {_device()}; less with {work.less}"
    log.warning(line)
    return line


def _time(setup: Setup, variables: Variables) -> tuple[float, float]:
    """Seconds of a forward pass, and of a gradient with respect to an image; for one image each."""
    network = setup.network

    def forward(variables: Variables, images: jax.Array) -> jax.Array:
        return jnp.sum(network.answer(variables, images))

    images = jnp.full((_BATCH, *network.image_shape), 0.5)
    gradient = channels_last(jax.grad(forward, argnums=1))
    return _seconds(forward, variables, images), _seconds(gradient, variables, images)


def _seconds(function: Callable[..., Any], *arguments: Any) -> float:
    compiled = jax.jit(function).lower(*arguments).compile()
    jax.block_until_ready(compiled(*arguments))
    began = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    return (time.perf_counter() - began) / _BATCH


def _duration(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 100 * 3600 else f"{seconds / 86400:.0f} days"


def _device() -> str:
    device = jax.devices()[0]
    return f"{os.cpu_count()} CPU cores" if device.platform == "cpu" else device.device_kind
