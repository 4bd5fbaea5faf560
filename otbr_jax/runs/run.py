"""One run: computes the steps of a plan in a working directory, with the network and data of a session."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from otbr_jax import plan as plans
from otbr_jax.graph.choose import choose_layers
from otbr_jax.plan import LongStep, Plan, Setup, Step
from otbr_jax.runs import estimate, identity, memory
from otbr_jax.runs.devices import everywhere, replicate, shared
from otbr_jax.runs.loop import rounds
from otbr_jax.runs.progress import progress_bar, say, step_progress
from otbr_jax.runs.session import Session
from otbr_jax.runs.store import Stage, Workdir
from otbr_jax.types import Augment, Network, unchanged


@dataclasses.dataclass(frozen=True)
class Run:
    """What all steps of a run share.

    Attributes:
      session: the network, the data and the devices.
      directory: the directory of its stages.
      seed: of every random choice.
      layers: which layers steps may score and repair, see `choose_layers`.
      augment: how clean images are augmented.
      repetition: the number of this run of the same settings; each but 0 has its own key.
    """

    session: Session
    directory: Workdir
    seed: int
    layers: str = "auto"
    augment: Augment = unchanged
    repetition: int = 0

    @property
    def mesh(self) -> Mesh:
        """The devices."""
        return self.session.mesh

    @property
    def network(self) -> Network:
        """The network, with the preprocessing of the data."""
        return self.session.network

    @functools.cached_property
    def setup(self) -> Setup:
        """What every step may read; its network splits images over the devices."""
        return dataclasses.replace(self._setup, network=self.shared_network)

    @functools.cached_property
    def shared_network(self) -> Network:
        """The network, which splits images over the devices under `jax.jit`."""
        return shared(self.network, self.mesh)

    @functools.cached_property
    def _setup(self) -> Setup:
        """The same for one device: it defines what is computed, on whatever devices."""
        graph = self.session.source.graph
        return Setup(self.network, graph, choose_layers(graph, self.layers), augment=self.augment)

    @functools.cached_property
    def setup_digest(self) -> str:
        """A hash of everything in the setup that steps may read."""
        return identity.setup_digest(self._setup, self.session.source.like)

    @functools.cached_property
    def network_digest(self) -> str:
        """A hash of what the network computes."""
        return identity.network_digest(self.network, self.session.source.like)

    @property
    def root(self) -> jax.Array:
        """The run's key, from the seed and the repetition alone."""
        key = jax.random.key(self.seed)
        return jax.random.fold_in(key, self.repetition) if self.repetition else key

    def key(self, name: str) -> jax.Array:
        """The key of that name."""
        return plans.named_key(self.root, name)

    def plan(self, plan: Plan, given: Mapping[str, Any]) -> dict[str, Stage]:
        """Computes (or reloads) every step of a plan: `{step name: stage}`, in order.

        Args:
          plan: the steps.
          given: inputs that no step computes: pytrees of arrays, or stages.

        Raises:
          InputError: if a value cannot be used, or cannot be written.
        """
        stages = {name: value if isinstance(value, Stage) else givens(name, value) for name, value in given.items()}
        for step in plan:
            stages[step.name] = self.step(step, stages)
        return {step.name: stages[step.name] for step in plan}

    def step(self, step: Step, stages: Mapping[str, Stage]) -> Stage:
        """Computes (or reloads) one step, from the values of the stages that it needs, and nothing else."""
        inputs = {argument: stage.value for argument, stage in plans.select_inputs(step, stages).items()}
        key = plans.step_key(self.root, step)
        compute: Callable[..., Any] = self._rounds if isinstance(step, LongStep) else self._at_once
        stage = self.directory.run_long(
            step.name,
            partial(compute, step, key, inputs),
            like=lambda: jax.eval_shape(partial(plans.compute, step, self.setup), key=key, **inputs),
            config={"settings": step.settings, "setup": self.setup_digest},
            key=key,
            code=identity.step_digest(step),
            parents=tuple(stages[name] for name in step.needs.values()),
            check=partial(step.check, step.settings),
        )
        if line := step.shown.tell(step.settings, stage.value):
            say(line)
        return stage

    def _at_once(self, step: Step, key: jax.Array, inputs: Mapping[str, Any], progress: pathlib.Path) -> Any:
        """Computes a step as one program, with a clock; devices have copies of everything but shared batches."""
        del progress
        step = plans.shorten(step, inputs)
        shown = step.shown
        estimate.announce(step, self._setup, inputs.get("victim"), devices=self.mesh.size)
        with step_progress(shown.title, shown.count(self.setup), unit=shown.unit) as report:
            began = time.perf_counter()
            key, inputs = jax.block_until_ready(replicate((key, dict(inputs)), self.mesh))
            transfer = time.perf_counter() - began
            program = self._program(step, report).lower(key=key, **inputs).compile()
            memory.warn(step.name, memory.megabytes(program), lighter=step.shown.lighter)
            value = jax.block_until_ready(program(key=key, **inputs))
            jax.effects_barrier()  # the last parts that a bar counts
        return value, {"megabytes": memory.megabytes(program), "transfer": transfer}

    def _program(self, step: Step, report: Callable[..., None] | None) -> Any:
        compute = partial(plans.compute, step, self.setup)
        return self._jit(compute if report is None else partial(compute, report=report))

    def _jit(self, function: Callable[..., Any]) -> Any:
        """A program whose outputs every device has whole."""
        return jax.jit(function, out_shardings=everywhere(self.mesh))

    def _rounds(self, step: LongStep, key: jax.Array, inputs: Mapping[str, Any], progress: pathlib.Path) -> Any:
        """Computes a long step as one program for each round; earlier rounds are reloaded."""
        began = time.perf_counter()
        key, inputs = jax.block_until_ready(replicate((key, dict(inputs)), self.mesh))
        transfer = time.perf_counter() - began
        on_devices: Callable[[Any], Any] = partial(replicate, mesh=self.mesh)
        begin, body, end = (
            self._jit(partial(part, self.setup, step.settings)) for part in (step.init, step.body, step.run)
        )
        sizes: list[float | None] = []

        def first(program: Any, *state: Any, **inputs: Any) -> Any:
            compiled = program.lower(*state, **inputs).compile()
            sizes.append(memory.megabytes(compiled))
            memory.warn(step.name, sizes[-1], lighter=step.shown.lighter)
            return compiled(*state, **inputs)

        def one_round(state: Any) -> Any:
            # Later rounds use JAX's own cache of compiled programs.
            call = body if len(sizes) > 1 else partial(first, body)
            return call(state, key=key, **inputs)

        shown = step.shown
        with progress_bar(shown.title, shown.count(self.setup), unit=shown.unit) as advance:
            state = rounds(
                on_devices(first(begin, key=key, **inputs)),
                one_round,
                done=lambda state: bool(step.done(self.setup, step.settings, state)),
                count=lambda state: int(step.count(state)),
                progress=progress,
                place=on_devices,
                on_round=advance,
            )
        value = first(end, state)
        return value, {"megabytes": memory.largest(sizes), "transfer": transfer}


def givens(name: str, value: Any) -> Stage:
    """An input of a plan as a stage that no step computed."""
    return Stage(value, name, identity.content_digest(value), 0.0, True, {})
