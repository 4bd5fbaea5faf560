"""One call for every defence: from a suspicious network in memory to a repaired one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax import plan as plans
from otbr_jax.defenses.defense import Outcome
from otbr_jax.defenses.registry import defense
from otbr_jax.errors import InputError
from otbr_jax.graph.graph import NeuronGraph
from otbr_jax.graph.trace import trace
from otbr_jax.types import Augment, Batch, Network, Variables, check_clean, check_finite, unchanged


class Defended(NamedTuple):
    """A repaired network.

    Attributes:
      variables: its variables.
      outcome: what was chosen and done, as words and plain values.
      values: the value of each step of the defence's plan, by name.
    """

    variables: Variables
    outcome: Outcome
    values: Mapping[str, Any]


def defend(
    name: str,
    network: Network,
    variables: Variables,
    *,
    key: jax.Array,
    clean: Batch | None = None,
    config: Any = None,
    graph: NeuronGraph | None = None,
    augment: Augment = unchanged,
    seed: int = 0,
) -> Defended:
    """Repairs a network by the defence of that name. Do not jit it: each step is a compiled program of its own.

    Args:
      name: of the defence, a key of `otbr_jax.defenses.registry.DEFENSES`.
      network: the functions of the network.
      variables: the suspicious network's variables.
      key: typed PRNG key.
      clean: clean images, uint8 `[n, h, w, c]` in 0..255, some of every class, and their labels, int `[n]`; for
        defences whose `data` is `clean images`, and only for them.
      config: the defence's settings, its `Config`; by default the published ones.
      graph: the network's neuron graph; traced if it is not given.
      augment: `(images, key) -> images`, how clean images are varied, as the network was trained.
      seed: of random choices among the clean images, such as held-out parts.

    Returns:
      The repaired network. If the defence has a detector that flags no class, it is the suspicious network unchanged.

    Raises:
      InputError: names the argument: there is no such defence; it needs clean images and there are none, or the other
        way round; the images do not fit; it cannot be used on such a network; it diverged.
    """
    method = defense(name)
    config = method.Config() if config is None else config
    if not isinstance(config, method.Config):
        raise InputError(f"config: expected {method.Config.__name__} of {name!r}, found {type(config).__name__}")
    check_finite(variables)
    check_clean(clean, network, name=name, data=method.data)
    if graph is None:
        images = jax.ShapeDtypeStruct((2, *network.image_shape), jnp.float32)
        graph = trace(network.apply, variables, images)
    setup = plans.set_up(network, graph, layers=method.layers(config), augment=augment)
    method.check(setup, config)
    batch = None if clean is None else Batch(jnp.asarray(clean.images), jnp.asarray(clean.labels, jnp.int32))
    inputs = {"victim": variables, **method.given(config, batch, seed)}
    values = plans.run(method.plan(config), setup, inputs, key=key)
    repaired = values[method.networks(config)[-1]].variables
    check_finite(repaired, name=f"the network that {name} repaired")
    return Defended(repaired, method.outcome(config, values), values)
