"""One call in memory: is this network backdoored, and for which class?"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from otbr_jax import plan as plans
from otbr_jax.detectors.detector import conclude
from otbr_jax.detectors.registry import detector
from otbr_jax.detectors.verdict import Verdict
from otbr_jax.errors import InputError
from otbr_jax.graph.graph import NeuronGraph
from otbr_jax.graph.trace import trace
from otbr_jax.plan import Setup
from otbr_jax.types import Batch, Network, Variables, check_clean, check_finite


def detect(
    name: str,
    network: Network,
    variables: Variables,
    *,
    key: jax.Array,
    clean: Batch | None = None,
    config: Any = None,
    graph: NeuronGraph | None = None,
) -> Verdict:
    """Runs a detector on a network. Its steps are compiled programs; the verdict is made on the host.

    Args:
      name: of the detector, one of `otbr_jax.detectors.registry.DETECTORS`.
      network: the functions of the network, at least two classes.
      variables: the suspicious network's variables.
      key: typed PRNG key.
      clean: clean images, uint8 `[n, h, w, c]` in 0..255, some of every class, and their labels, int `[n]`; for
        detectors whose `data` is `clean images`, and only for them.
      config: the detector's settings; by default its `Config()`.
      graph: the network's neuron graph; traced if it is None.

    Returns:
      The verdict.

    Raises:
      InputError: in one line, if there is no such detector, the settings are another's, or clean images are missing,
        not needed, or do not fit the network.
    """
    method = detector(name)
    config = method.Config() if config is None else config
    if not isinstance(config, method.Config):
        raise InputError(f"config: expected {method.Config.__name__} of {name!r}, found {type(config).__name__}")
    if network.num_classes < 2:
        raise InputError(f"network: expected at least 2 classes, found {network.num_classes}")
    check_finite(variables)
    check_clean(clean, network, name=name, data=method.data)
    inputs: dict[str, Any] = {"victim": variables}
    if clean is not None:
        inputs["clean"] = Batch(jnp.asarray(clean.images), jnp.asarray(clean.labels, jnp.int32))
    if graph is None:
        graph = trace(network.apply, variables, jax.ShapeDtypeStruct((2, *network.image_shape), jnp.float32))
    values = plans.run(method.plan(config), Setup(network, graph, graph.hidden_layers), inputs, key=key)
    return conclude(method, config, values)
