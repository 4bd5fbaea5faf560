"""Which layers of a network a defence scores and repairs."""

from __future__ import annotations

from otbr_jax.errors import InputError
from otbr_jax.graph.graph import Layer, NeuronGraph

LAYERS = ("auto", "convolutions", "hidden")


def choose_layers(graph: NeuronGraph, layers: str) -> tuple[Layer, ...]:
    """The layers of a network that a defence scores and repairs, in execution order.

    Args:
      graph: the network's neuron graph.
      layers: `convolutions` of the main path, as published; `hidden`, its dense layers too; `auto`, convolutions where
        they are most of the hidden layers (ResNet, VGG, DenseNet), else hidden (MLP, ViT, ConvNeXt).

    Raises:
      InputError: if there is no such choice, or the network has no such layer.
    """
    if layers not in LAYERS:
        raise InputError(f"layers: expected one of {[*LAYERS]}, found {layers!r}")
    convolutions, hidden = graph.main_convolutions, graph.hidden_layers
    if layers == "auto":
        layers = "convolutions" if 2 * len(convolutions) > len(hidden) else "hidden"
    chosen = convolutions if layers == "convolutions" else hidden
    if not chosen:
        raise InputError(f"layers: expected {layers} layers on the network's main path, found none")
    return chosen
