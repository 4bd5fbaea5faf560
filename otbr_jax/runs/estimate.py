"""What is said before a step starts: how long it will take, where that is long."""

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

_WORTH = 2e13  # operations: what takes less is not worth timing anything
_LONG = 600.0  # seconds
_PICTURES = 16  # that are timed


def announce(step: Step, setup: Setup, variables: Variables | None, *, devices: int = 1) -> str | None:
    """Logs one line if a step, and those whose work it states, will take more than ten minutes; returns it.

    The line comes from a timed batch of this network's answers and gradients, on the device that it will run on. Small
    networks are only counted, and nothing is compiled for them.

    Args:
      step: says what it takes (`Shown.work`).
      setup: of the run, for one device.
      variables: the network's; None where there is none yet.
      devices: how many will share the work.
    """
    if step.shown.work is None or variables is None:
        return None
    work = step.shown.work(setup)
    if flops_of(setup.network, variables).operations * (work.predictions + 2 * work.gradients) < _WORTH:
        return None
    answers, gradients = _timed(setup, variables)
    seconds = (work.predictions * answers + work.gradients * gradients) / devices
    if seconds < _LONG:
        return None
    line = f"{work.what} will take about {_duration(seconds)} on {_device()}; less with {work.less}"
    log.warning(line)
    return line


def _timed(setup: Setup, variables: Variables) -> tuple[float, float]:
    """Seconds of an answer, and of a gradient by a picture."""
    network = setup.network

    def answer(variables: Variables, pictures: jax.Array) -> jax.Array:
        return jnp.sum(network.answer(variables, pictures))

    pictures = jnp.full((_PICTURES, *network.image_shape), 0.5)
    gradient = channels_last(jax.grad(answer, argnums=1))
    return _seconds(answer, variables, pictures), _seconds(gradient, variables, pictures)


def _seconds(function: Callable[..., Any], *arguments: Any) -> float:
    compiled = jax.jit(function).lower(*arguments).compile()
    jax.block_until_ready(compiled(*arguments))
    began = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    return (time.perf_counter() - began) / _PICTURES


def _duration(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 100 * 3600 else f"{seconds / 86400:.0f} days"


def _device() -> str:
    device = jax.devices()[0]
    return f"{os.cpu_count()} CPU cores" if device.platform == "cpu" else device.device_kind
