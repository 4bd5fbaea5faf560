"""TSBD: two-stage defence with a few per cent of clean data (arXiv 2405.20291)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax

from otbr_jax.errors import InputError
from otbr_jax.finetuning import FinetuningConfig, FinetuningInfo, finetune
from otbr_jax.layer_choice import LAYERS
from otbr_jax.neuron_graph import Layer
from otbr_jax.pruning import SCHEMES, ReinitInfo, neurons_to_prune, reinitialize
from otbr_jax.settings import field, settings
from otbr_jax.types import Batch, Network, Variables
from otbr_jax.unlearning import CleanUnlearningConfig, CleanUnlearningInfo, clean_unlearning
from otbr_jax.weight_change import neuron_weight_changes


@settings("tsbd")
class TSBDConfig:
    """The whole method; the defaults are the published ones."""

    unlearning: CleanUnlearningConfig = field(default=CleanUnlearningConfig(), doc="step 1, clean unlearning.")
    n: float = field(
        default=0.15, at_least=0, at_most=1, doc="step 2, share of neurons whose weights are re-initialised."
    )
    m: float = field(default=0.7, at_least=0, at_most=1, doc="step 2, share of their weights that is set to zero.")
    scheme: str = field(
        default="weights",
        choices=SCHEMES,
        doc="step 2, what of the neurons is set to zero: `weights`, as published, or `neurons`, all their parameters; "
        "m is then of no use.",
    )
    finetuning: FinetuningConfig = field(default=FinetuningConfig(), doc="step 3, activeness-aware fine-tuning.")
    layers: str = field(
        default="auto", choices=LAYERS, doc="which layers are scored and re-initialised, see `choose_layers`."
    )

    def shares(self, m: Sequence[float] = ()) -> tuple[float, ...]:
        """The values of m to try, of these or the setting; whole neurons lose all weights, whatever m is."""
        return (1.0,) if self.scheme == "neurons" else tuple(m) or (self.m,)


class TSBDInfo(NamedTuple):
    """What happened on the way: `scores` are the neuron weight changes, `{layer name: [neurons]}`."""

    unlearning: CleanUnlearningInfo
    scores: Mapping[str, jax.Array]
    reinit: ReinitInfo
    finetuning: FinetuningInfo


def tsbd(
    network: Network,
    variables: Variables,
    clean: Batch,
    layers: Sequence[Layer],
    *,
    key: jax.Array,
    config: TSBDConfig,
    prepare: Callable[[jax.Array, jax.Array], jax.Array] = lambda images, key: images,
    axis_name: str | None = None,
) -> tuple[Variables, TSBDInfo]:
    """Repairs a network with a few clean images. Pure; jits; runs inside `jax.pmap` with `axis_name`.

    Guarantee: touches no data but `clean`.

    Args:
      network: the functions of the network.
      variables: the suspicious network's variables.
      clean: clean images `[n, h, w, c]` and their labels `[n]`; on a mapped axis each device's own part.
      layers: the layers to score and re-initialise.
      key: typed PRNG key: the order of the images, and their augmentation.
      config: the method's settings.
      prepare: `(images, key) -> images` as the network takes them: augmentation and normalisation.
      axis_name: mapped axis whose devices share each batch.

    Returns:
      `(repaired variables, TSBDInfo)`.

    Raises:
      InputError: if `layers` is empty, or there are fewer images than one batch.
    """
    if not layers:
        raise InputError("layers: expected at least one convolution on the main path, found none")
    unlearning_key, finetuning_key = jax.random.split(key)
    unlearned, unlearning_info = clean_unlearning(
        network,
        variables,
        clean,
        key=unlearning_key,
        config=config.unlearning,
        prepare=prepare,
        axis_name=axis_name,
    )
    scores = neuron_weight_changes(variables, unlearned, layers)
    count = neurons_to_prune(config.n, sum(layer.neurons for layer in layers))
    reinitialized, reinit_info = reinitialize(
        variables, unlearned, scores, layers, count=count, share=config.m, scheme=config.scheme
    )
    repaired, finetuning_info = finetune(
        network,
        reinitialized,
        clean,
        key=finetuning_key,
        config=config.finetuning,
        prepare=prepare,
        axis_name=axis_name,
    )
    return repaired, TSBDInfo(unlearning_info, scores, reinit_info, finetuning_info)
