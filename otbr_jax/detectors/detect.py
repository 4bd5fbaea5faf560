"""One call in memory: is this network backdoored, and for which class?"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax import plan as plans
from otbr_jax.detectors.detector import Verdict
from otbr_jax.detectors.registry import detector
from otbr_jax.errors import InputError
from otbr_jax.graph.graph import NeuronGraph
from otbr_jax.graph.trace import trace
from otbr_jax.plan import Setup
from otbr_jax.types import Batch, Network, Variables


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
    """Asks a detector about a network. Its steps are compiled programs; the verdict is made on the host.

    Args:
      name: of the detector, one of `otbr_jax.detectors.registry.DETECTORS`.
      network: the functions of the network, at least two classes.
      variables: the suspicious network's variables.
      key: typed PRNG key.
      clean: for a detector that needs them, clean images `[n, h, w, c]`, uint8 or floats in [0, 1], with their labels
        `[n]`, of at least two classes.
      config: the detector's settings; by default its `Config()`.
      graph: the network's neuron graph, traced if it is not given.

    Returns:
      The verdict.

    Raises:
      InputError: in one line, if there is no such detector, the settings are another's, or clean images are missing,
        not wanted, or do not fit the network.
    """
    chosen = detector(name)
    config = chosen.Config() if config is None else config
    if not isinstance(config, chosen.Config):
        raise InputError(f"config: expected a {chosen.Config.__name__}, found a {type(config).__name__}")
    if network.num_classes < 2:
        raise InputError(f"network: expected at least 2 classes, found {network.num_classes}")
    given: dict[str, Any] = {"victim": variables}
    if chosen.data == "none":
        if clean is not None:
            raise InputError(f"clean: expected none, since {name!r} needs no data, found {type(clean).__name__}")
    elif clean is None:
        raise InputError(f"clean: expected clean images, which {name!r} needs, found none")
    else:
        given["clean"] = checked_clean(clean, network)
    if graph is None:
        graph = trace(network.apply, variables, jax.ShapeDtypeStruct((2, *network.image_shape), jnp.float32))
    values = plans.run(chosen.plan(config), Setup(network, graph, graph.hidden_layers), given, key=key)
    return chosen.verdict(config, values)


def checked_clean(clean: Batch, network: Network) -> Batch:
    """Clean images that fit the network, as arrays; raises InputError otherwise."""
    try:
        images, labels = (np.asarray(part) for part in clean)
    except (TypeError, ValueError):
        raise InputError(f"clean: expected a Batch of images and labels, found a {type(clean).__name__}") from None
    shape, classes = tuple(network.image_shape), network.num_classes
    if images.ndim != 4 or images.shape[1:] != shape or not len(images):
        raise InputError(
            f"clean.images: expected [n, {', '.join(map(str, shape))}] as the network takes them, found {images.shape}"
        )
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise InputError(f"clean.images: expected uint8, or floats in [0, 1], found {images.dtype}")
    if images.dtype != np.uint8 and not (np.min(images) >= 0 and np.max(images) <= 1):
        raise InputError(
            f"clean.images: expected floats in [0, 1], found {np.min(images):g} to {np.max(images):g}; were they "
            "normalised before?"
        )
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"clean.labels: expected a whole number for each of {len(images)} images, found {labels.dtype} "
            f"{labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"clean.labels: expected classes in 0..{classes - 1}, found {labels.min()} to {labels.max()}")
    if len(np.unique(labels)) < 2:
        raise InputError(f"clean.labels: expected images of at least 2 classes, found class {labels[0]} alone")
    images = images if images.dtype == np.uint8 else images.astype(np.float32)
    return Batch(jnp.asarray(images), jnp.asarray(labels, jnp.int32))
