"""One run: its settings, directory, network and devices, and how a stage of it is keyed, placed and shown."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from otbr_jax.data import sources
from otbr_jax.experiments import parallel
from otbr_jax.experiments.config import VictimConfig
from otbr_jax.experiments.networks import Subject
from otbr_jax.experiments.progress import hidden, progress_bar
from otbr_jax.experiments.stages import Stage, Workdir
from otbr_jax.types import Network

C = TypeVar("C", bound=VictimConfig)


@dataclasses.dataclass(frozen=True)
class Run(Generic[C]):
    """What every stage of a run is computed with."""

    config: C
    directory: Workdir
    subject: Subject
    mesh: Mesh

    @property
    def network(self) -> Network:
        """The functions of the network."""
        return self.subject.network

    def key(self, stage: str) -> jax.Array:
        """The key of a stage: from the seed and the stage's name alone."""
        return jax.random.fold_in(jax.random.key(self.config.seed), zlib.crc32(stage.encode()))

    def network_digest(self) -> str:
        """A hash of what the network computes, so that stages do not outlive a change of its code."""
        images = jax.ShapeDtypeStruct((2, *self.network.image_shape), jnp.float32)
        programs = [
            jax.make_jaxpr(function)(self.subject.like, images) for function in (self.network.apply, self.network.train)
        ]
        return hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", str(programs)).encode()).hexdigest()

    def prepare(self, images: jax.Array) -> jax.Array:
        """uint8 images, or images in [0, 1], -> images as the network takes them."""
        return sources.preprocess(images, self.config.data)

    def stage(
        self,
        name: str,
        function: Callable[..., Any],
        inputs: tuple[Any, ...],
        *,
        title: str,
        config: Any,
        parents: tuple[Stage, ...] = (),
        key: jax.Array | None = None,
        total: int = 1,
        unit: str = "step",
    ) -> Stage:
        """Runs (or reloads) a jitted stage `function(*inputs, on_step)` with a progress bar of `total` steps."""

        def compute() -> Any:
            with progress_bar(title, total, unit=unit) as advance:
                placed = parallel.replicate(inputs, self.mesh)
                on_step = None if hidden() else advance
                value = jax.block_until_ready(jax.jit(partial(function, on_step=on_step))(*placed))
                jax.effects_barrier()  # the bar's last steps
                return value

        return self.directory.run(
            name,
            compute,
            like=lambda: jax.eval_shape(partial(function, on_step=None), *inputs),
            config=config,
            key=key,
            code=function.__module__,
            parents=parents,
        )
