"""OTBR without an oracle: whether to repair, gamma and lambda are chosen by images made from the network itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax.defenses.otbr import OTBRConfig, prune_changed
from otbr_jax.errors import InputError
from otbr_jax.fusion import align, interpolate
from otbr_jax.inversion import Inverted, invert_triggers
from otbr_jax.neuron_graph import Layer
from otbr_jax.patching import PatchingConfig, patch_classes
from otbr_jax.pruning import neurons_to_prune
from otbr_jax.suspicion import Judgement, SuspicionConfig, answers, judge
from otbr_jax.synthetic import synthesize
from otbr_jax.types import Batch, Network, Variables
from otbr_jax.unlearning import random_unlearning
from otbr_jax.weight_change import Scores, neuron_weight_changes, rankable


class OTBRPlusInfo(NamedTuple):
    """What happened on the way.

    Attributes:
      triggers: the suspicious network's, one for each class.
      judgement: which class stands out; `gamma` and `lam` are what was chosen, 0 where none does.
      gamma: share of neurons that the fused network lost, which is returned where nothing is patched.
      lam: the paper's lambda of that network.
      share: `[patching.classes, 1 + patching.recoveries]`, at most one row for each class: how much of the way was gone
        for each of the most suspicious classes in each phase, see `patch`; 0 for none.
    """

    triggers: Inverted
    judgement: Judgement
    gamma: jax.Array
    lam: jax.Array
    share: jax.Array


def otbr_plus(
    network: Network,
    variables: Variables,
    layers: Sequence[Layer],
    *,
    key: jax.Array,
    config: OTBRConfig,
    suspicion: SuspicionConfig,
    patching: PatchingConfig,
    neighbours: Sequence[Layer] = (),
    prepare: Callable[[jax.Array], jax.Array] = lambda images: images,
    augment: Callable[[jax.Array, jax.Array], jax.Array] = lambda images, key: images,
) -> tuple[Variables, OTBRPlusInfo]:
    """Repairs a network without any data, or leaves it as it is. Pure; jits.

    Args:
      network: the functions of the network.
      variables: the suspicious network's variables.
      layers: the layers to score, prune and fuse, see `choose_layers`.
      key: typed PRNG key.
      config: the method's settings; gamma and lambda are not used.
      suspicion: the settings to try, and how the network is judged.
      patching: how the network is patched instead of fused; with `triggers` = 0 the fused one is returned.
      neighbours: layers that follow where `config.fusion.aligned` says so, see `layer_choice.neighbours`.
      prepare: images in [0, 1] -> images as the network takes them.
      augment: `(images, key) -> images`, both in [0, 1], of the images that are patched with.

    Raises:
      InputError: if `layers` or `suspicion.gamma` is empty.
    """
    if not layers or not suspicion.gamma:
        raise InputError(f"{'suspicion.gamma' if layers else 'layers'}: expected at least one, found none")
    noise_key, image_key, search_key, fuse_key, patch_key = jax.random.split(key, 5)
    unlearned, _ = random_unlearning(network, variables, key=noise_key, config=config.unlearning)
    scores = rankable(neuron_weight_changes(variables, unlearned, layers), ranking=config.ranking)
    made, _ = synthesize(network, variables, key=image_key, config=suspicion.synthetic, prepare=prepare)
    given = jnp.argmax(network.apply(variables, prepare(made.images)), axis=-1).astype(jnp.int32)
    images = Batch(made.images, given)
    triggers = invert_triggers(
        network,
        variables,
        images,
        key=search_key,
        patch=suspicion.patch,
        perturbation=suspicion.perturbation,
        prepare=prepare,
    )
    ask = partial(answers, network, images=images, triggers=triggers, prepare=prepare)
    fused_at = partial(
        fuse_settings, variables, unlearned, scores, layers, neighbours=neighbours, config=config, key=fuse_key
    )
    total = sum(layer.neurons for layer in layers)
    counts = jnp.array([neurons_to_prune(gamma, total) for gamma in suspicion.gamma], jnp.int32)
    lams = jnp.array(suspicion.lam, jnp.float32)
    judgement = judge(triggers, fused_at(ask, counts=counts, lams=lams), config=suspicion)
    row, column = judgement.chosen // len(lams), judgement.chosen % len(lams)
    lam = jnp.where(judgement.stands_out, lams[column], 0.0)
    count = jnp.where(judgement.stands_out, counts[row], 0)
    fused = jax.tree.map(lambda leaf: leaf[0], fused_at(lambda found: found, counts=count[None], lams=lam[None]))
    gamma = jnp.where(judgement.stands_out, jnp.array(suspicion.gamma)[row], 0.0)
    if not patching.triggers:
        share = jnp.zeros((min(patching.classes, network.num_classes), 1 + patching.recoveries))
        return fused, OTBRPlusInfo(triggers, judgement, gamma, lam, share)
    patched, info = patch_classes(
        network,
        variables,
        images,
        judgement.suspicion,
        threshold=suspicion.threshold,
        key=patch_key,
        config=patching,
        synthetic=suspicion.synthetic,
        prepare=prepare,
        augment=augment,
    )
    return patched, OTBRPlusInfo(triggers, judgement, gamma, lam, info.share)


def fuse_settings(
    variables: Variables,
    unlearned: Variables,
    scores: Scores,
    layers: Sequence[Layer],
    ask: Callable[[Variables], Any],
    *,
    counts: jax.Array,
    lams: jax.Array,
    config: OTBRConfig,
    neighbours: Sequence[Layer] = (),
    key: jax.Array,
    on_setting: Callable[[], None] | None = None,
) -> Any:
    """What `ask` says of the network fused at every pair of a gamma and a lambda; gammas first. One held at a time.

    Args:
      variables: the suspicious network's variables.
      unlearned: the same after random or clean unlearning.
      scores: neuron weight changes.
      layers: the layers to prune and fuse.
      ask: of a fused network's variables.
      counts: int `[gammas]`, how many neurons each gamma prunes.
      lams: float32 `[lambdas]`.
      config: the method's settings, but for gamma and lambda.
      neighbours: layers that follow, see `fusion.align`.
      key: typed PRNG key, which only random masses need.
      on_setting: called on the host after each gamma; None traces no callback.
    """

    def one_gamma(count: jax.Array) -> Any:
        pruned, info = prune_changed(variables, unlearned, scores, layers, count=count, m=config.m)
        aligned = align(
            pruned, variables, scores, info.pruned, layers, config=config.fusion, neighbours=neighbours, key=key
        )
        asked = jax.lax.map(lambda lam: ask(interpolate(variables, aligned, lam=lam)), lams)
        if on_setting is not None:
            jax.debug.callback(on_setting)
        return asked

    return jax.tree.map(lambda found: found.reshape(-1, *found.shape[2:]), jax.lax.map(one_gamma, counts))
