"""Opens the network of a run: one of the registry or the user's own, with its weights if it has any yet."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.errors import InputError
from otbr_jax.graph.graph import NeuronGraph
from otbr_jax.graph.trace import trace
from otbr_jax.interop import functions
from otbr_jax.interop.matching import Normalisation, Template
from otbr_jax.interop.tensor_files import TensorFile
from otbr_jax.models import registry
from otbr_jax.models.registry import ModelConfig
from otbr_jax.runs.infer_model import infer_settings
from otbr_jax.runs.loading import load_checkpoint, read_checkpoint
from otbr_jax.types import Network, Variables, check_finite


class Source(NamedTuple):
    """A network and its origin: its functions, its weights, and how to write them in the user's format.

    Attributes:
      config: its settings, with the sizes of its file.
      network: its functions.
      like: its variables as `jax.ShapeDtypeStruct`.
      graph: its neuron graph.
      variables: its weights, None if it has none yet.
      init: `key -> variables`, None for a network of the user's own.
      template: the format of the user's file; None for an Orbax checkpoint or no file.
      restore: turns variables into the user's own pytree.
    """

    config: ModelConfig
    network: Network
    like: Variables
    graph: NeuronGraph
    variables: Variables | None
    init: Callable[[jax.Array], Variables] | None
    template: Template | None = None
    restore: Callable[[Variables], Any] = lambda variables: variables


def open_network(config: ModelConfig, checkpoint: TensorFile | pathlib.Path | None = None) -> Source:
    """Builds or imports the network that `config` names, loads its checkpoint and traces it.

    Args:
      config: the settings; without a name the checkpoint says which network it is, see `infer_settings`.
      checkpoint: the checkpoint, if it has been read already; by default it is read here, once.

    Raises:
      InputError: names the setting or file that is wrong, or the operation that cannot be traced.
    """
    if ":" in config.name:
        source = _user_network(config)
    else:
        if config.checkpoint and checkpoint is None:
            if config.name:
                registry.build(config)  # an unknown name or size raises here, before a large file is read
            checkpoint = read_checkpoint(config.checkpoint, name="model.checkpoint")
        if not config.name:
            config = infer_settings(config, checkpoint)
        source = _known_network(config, checkpoint)
    if source.variables is not None:
        origin = f"model.checkpoint {config.checkpoint}" if config.checkpoint else f"model.name {config.name}"
        check_finite(source.variables, name=origin)
    return source


def _known_network(config: ModelConfig, checkpoint: TensorFile | pathlib.Path | None) -> Source:
    """A network of the registry, with the weights of a checkpoint if there is one."""
    network, init = registry.build(config)
    like = jax.eval_shape(init, jax.random.key(0))
    variables, template = None, None
    if checkpoint is not None:
        variables, template = load_checkpoint(checkpoint, like, name="model.checkpoint", entry=config.entry)
        if template is not None and template.normalisation is not None:
            network = _normalising(network, template.normalisation, config)
    return Source(config, network, like, _graph(network, like), variables, init, template)


def check_classes(network: Network) -> None:
    """Raises InputError if the network has fewer than two logits."""
    if network.num_classes < 2:
        raise InputError(
            f"model.num_classes: expected at least 2, one logit for each class, found {network.num_classes}; a network "
            "with one logit can be wrapped as `logits -> [0, logit]`"
        )


def _user_network(config: ModelConfig) -> Source:
    user = functions.load(config.name, image_shape=config.image_shape, num_classes=config.num_classes)
    if config.checkpoint:
        raise InputError(
            f"model.checkpoint: expected none, since {config.name} brings its variables, found {config.checkpoint!r}"
        )
    network, variables = user.network, user.variables
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), variables)
    graph = user.graph if user.graph is not None else _graph(network, like)
    return Source(config, network, like, graph, variables, None, restore=user.restore)


def _normalising(network: Network, of: Normalisation, config: ModelConfig) -> Network:
    """The network of a file that normalises its own input."""
    channels = network.image_shape[2]
    if not {len(of.mean), len(of.std)} <= {1, channels}:
        raise InputError(
            f"model.checkpoint: expected an input normalisation of {channels} channels in {config.checkpoint}, "
            f"found {len(of.mean)} means and {len(of.std)} deviations"
        )
    mean, std, train = jnp.array(of.mean), jnp.array(of.std), network.apply_train
    return dataclasses.replace(
        network,
        apply=lambda variables, images: network.apply(variables, (images - mean) / std),
        apply_train=None if train is None else lambda variables, images: train(variables, (images - mean) / std),
    )


def _graph(network: Network, like: Variables) -> NeuronGraph:
    return trace(network.apply, like, jax.ShapeDtypeStruct((2, *network.image_shape), jnp.float32))
