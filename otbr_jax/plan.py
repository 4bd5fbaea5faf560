"""A plan: the steps of a method in order, the inputs of each, and how they run in memory.

A step is a pure function of the inputs that it names, and of nothing else. `run` computes a plan in memory;
`otbr_jax.runs` computes the same plan on disk and devices. Both derive a step's key from the step's name, so that both
give the same bits.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.errors import InputError
from otbr_jax.graph.choose import choose_layers
from otbr_jax.graph.graph import Layer, NeuronGraph
from otbr_jax.types import Augment, Network, unchanged

Report = Callable[..., None]
"""Called on the host after each part of a step, with values for a progress bar."""

ROOT = ""
"""The name of the run's own key: see `Step.key`."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """What every step can read.

    Attributes:
      network: its functions, `prepare` among them.
      graph: its neuron graph.
      layers: the layers that are scored and repaired, in execution order.
      augment: the augmentation of clean images before they are prepared, as in the network's training.
      axis_name: mapped axis whose devices share each batch, inside `jax.pmap` or `jax.shard_map`.
    """

    network: Network
    graph: NeuronGraph
    layers: tuple[Layer, ...]
    augment: Augment = unchanged
    axis_name: str | None = None

    @property
    def neurons(self) -> int:
        """Total number of neurons of the layers."""
        return sum(layer.neurons for layer in self.layers)


def set_up(
    network: Network,
    graph: NeuronGraph,
    *,
    layers: str = "auto",
    augment: Augment = unchanged,
    axis_name: str | None = None,
) -> Setup:
    """The setup of a network, with the layers that `choose_layers` chooses; raises InputError if there are none."""
    return Setup(network, graph, choose_layers(graph, layers), augment, axis_name)


class Work(NamedTuple):
    """The work of a step and of those that follow it.

    Attributes:
      what: in words.
      predictions: number of images that pass through the network.
      gradients: number of gradients with respect to an image.
      less: flags that reduce it.
    """

    what: str
    predictions: float
    gradients: float
    less: str


@dataclasses.dataclass(frozen=True)
class Shown:
    """What is displayed of a step while it runs; none of it changes the value.

    Attributes:
      title: of the progress bar.
      total: number of reports of `run`, or `setup -> number`.
      unit: of a report.
      work: `setup -> Work`, from which the time is estimated before the step starts; None where it is short.
      tell: `(settings, value) -> line`, called on the host: a message about the value; empty for none.
      lighter: settings that reduce its memory.
    """

    title: str = ""
    _: dataclasses.KW_ONLY
    total: int | Callable[[Setup], int] = 1
    unit: str = "step"
    work: Callable[[Setup], Work] | None = None
    tell: Callable[[Any, Any], str] = lambda settings, value: ""
    lighter: str = ""

    def count(self, setup: Setup) -> int:
        """The number of reports of `run`."""
        return self.total(setup) if callable(self.total) else self.total


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a plan.

    Attributes:
      name: of the step's value, such as `unlearned`.
      run: `(setup, settings, *, key, report, **needs) -> pytree of arrays`. Pure; jits. `report` is None without a
        progress bar.
      needs: `{argument of run: name of an earlier step or of an input of the plan}`. Nothing else is passed.
      settings: the only part of the configuration that `run` gets: a dataclass, or plain values.
      key: the name from which its key is derived; by default its own, `ROOT` for the run's own key.
      check: `(settings, value)`, called on the host; raises InputError, or warns, if the value cannot be used.
      instead: `(settings, {argument: value}) -> run or None`, called on the host: another `run` with the same value for
        these inputs, which compiles faster.
      shown: what is displayed of it while it runs.
    """

    name: str
    run: Callable[..., Any]
    needs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    settings: Any = None
    _: dataclasses.KW_ONLY
    key: str | None = None
    check: Callable[[Any, Any], None] = lambda settings, value: None
    instead: Callable[[Any, Mapping[str, Any]], Callable[..., Any] | None] = lambda settings, inputs: None
    shown: Shown = Shown()


@dataclasses.dataclass(frozen=True)
class LongStep(Step):
    """A step in rounds, long enough to be saved between them.

    In memory it is a loop of the compiled program. On disk it is a loop of the host, which saves the state and resumes.
    `run` is the last of four functions: it turns the state into the value.

    Attributes:
      init: `(setup, settings, *, key, **needs) -> state`.
      body: `(setup, settings, state, *, key, **needs) -> (state, {name: value to show})`.
      done: `(setup, settings, state) -> bool`, whether it has ended.
      count: `state -> int`, the number of rounds so far.
    """

    init: Callable[..., Any] = lambda setup, settings, *, key: None
    body: Callable[..., Any] = lambda setup, settings, state, *, key: (state, {})
    done: Callable[..., Any] = lambda setup, settings, state: True
    count: Callable[[Any], Any] = lambda state: 0


Plan = tuple[Step, ...]


def needs(*names: str, **others: str) -> dict[str, str]:
    """The `needs` of a step: `names` under their own names, `others` as `argument="name"`."""
    return {name: name for name in names} | others


def step_key(key: jax.Array, step: Step) -> jax.Array:
    """The key of a step, derived from the run's key and a name alone."""
    name = step.name if step.key is None else step.key
    return key if name == ROOT else named_key(key, name)


def named_key(key: jax.Array, name: str) -> jax.Array:
    """The key of a name: `fold_in(key, crc32(name))`."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def select_inputs(step: Step, values: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a step, by the names of its arguments; raises InputError that names a missing one."""
    for name in step.needs.values():
        if name not in values:
            raise InputError(f"plan: step {step.name!r} expects {name!r} before it, found {sorted(values)}")
    return {argument: values[name] for argument, name in step.needs.items()}


def shorten(step: Step, inputs: Mapping[str, Any]) -> Step:
    """The step that computes the same value of concrete inputs and compiles faster; see `Step.instead`."""
    other = step.instead(step.settings, inputs)
    if other is None:
        return step
    return dataclasses.replace(step, run=other, shown=dataclasses.replace(step.shown, work=None))


def compute(step: Step, setup: Setup, *, key: jax.Array, report: Report | None = None, **inputs: Any) -> Any:
    """The value of a step; pure, traced as one program."""
    if isinstance(step, LongStep):
        state = jax.lax.while_loop(
            lambda state: ~step.done(setup, step.settings, state),
            lambda state: step.body(setup, step.settings, state, key=key, **inputs)[0],
            step.init(setup, step.settings, key=key, **inputs),
        )
        return step.run(setup, step.settings, state)
    return step.run(setup, step.settings, key=key, report=report, **inputs)


def programs(plan: Plan, setup: Setup) -> Callable[..., dict[str, Any]]:
    """A plan as compiled programs that are kept: `(inputs, *, key) -> {step name: its value}`, as of `run`.

    For many networks of one model: inputs of equal shapes share one compiled program.
    """
    compiled: dict[Any, Callable[..., Any]] = {}

    def run(inputs: Mapping[str, Any], *, key: jax.Array) -> dict[str, Any]:
        values = dict(inputs)
        for step in plan:
            arguments = select_inputs(step, values)
            fitting = step if _is_traced((key, arguments)) else shorten(step, arguments)
            program = compiled.setdefault((step.name, fitting.run), jax.jit(partial(compute, fitting, setup)))
            value = program(key=step_key(key, step), **arguments)
            if not _is_traced(value):
                step.check(step.settings, value)
            values[step.name] = value
        return {step.name: values[step.name] for step in plan}

    return run


def stacked_programs(plan: Plan, setup: Setup) -> Callable[..., dict[str, Any]]:
    """A plan as compiled programs for a stack of networks: `(inputs, shared, *, keys) -> {step name: its value}`.

    Every step runs under one `jax.vmap`. `inputs`, `keys` and all values have a leading axis, one entry for each
    network; `shared` inputs, such as clean images, are the same for every network. Each network has the values that it
    has alone, but for rounding.

    A condition that differs between networks costs both of its branches, and a loop runs until the last of them is
    done. Checks see each network's value; the first that cannot be used raises InputError for the stack.
    """

    def one(step: Step, key: jax.Array, own: Any, shared: Any) -> Any:
        return compute(step, setup, key=step_key(key, step), **own, **shared)

    compiled = {step.name: jax.jit(jax.vmap(partial(one, step), in_axes=(0, 0, None))) for step in plan}

    def run(inputs: Mapping[str, Any], shared: Mapping[str, Any], *, keys: jax.Array) -> dict[str, Any]:
        values = dict(inputs)
        for step in plan:
            arguments = select_inputs(step, {**shared, **values})
            own = {argument: arguments.pop(argument) for argument, name in step.needs.items() if name in values}
            value = compiled[step.name](keys, own, arguments)
            if not _is_traced(value):
                for index in range(len(keys)):
                    step.check(step.settings, tree_entry(value, index))
            values[step.name] = value
        return {step.name: values[step.name] for step in plan}

    return run


def stack_trees(trees: Sequence[Any]) -> Any:
    """Stacks pytrees of equal shapes into one, whose arrays have a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def tree_entry(stack: Any, index: int) -> Any:
    """One pytree of a stack; see `stack_trees`."""
    return jax.tree.map(lambda leaf: leaf[index], stack)


def _is_traced(value: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))


def run(plan: Plan, setup: Setup, inputs: Mapping[str, Any], *, key: jax.Array) -> dict[str, Any]:
    """Runs a plan in memory. Pure; jits; each step is a program of its own where it is called outside `jax.jit`.

    Args:
      plan: the steps, in order.
      setup: what every step can read.
      inputs: the inputs of the plan, such as `victim`, the suspicious network's variables.
      key: typed PRNG key; see `step_key`.

    Returns:
      `{step name: its value}`, in order.

    Raises:
      InputError: if an input of a step is missing; outside `jax.jit` also if a value cannot be used.
    """
    return programs(plan, setup)(inputs, key=key)
