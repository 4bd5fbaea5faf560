"""Gates: scales of normalisations that multiply neurons, found without names of layers, and masks on them.

A channel whose normalisation has scale 0 is pruned, whatever its kernel is. ANP, RNP and CLP prune this way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from otbr_jax.errors import InputError
from otbr_jax.graph.graph import Layer, Vector
from otbr_jax.numerics.collectives import mean
from otbr_jax.numerics.convolutions import channels_last
from otbr_jax.steps.objective import losses
from otbr_jax.types import Batch, Network, Variables, named_leaves, replace_leaves

_PROBES = 4  # images; no layer has only channels that are 0 on all of them
_SAME = 1e-3  # relative to the largest logit: rounding, and the epsilon that normalisations add to variances


class Pair(NamedTuple):
    """A parameter that may be a normalisation's scale, and a statistic that may be its variance, of one layer."""

    layer: str
    scale: Vector
    variance: Vector


def pairs_of(layers: Sequence[Layer]) -> tuple[Pair, ...]:
    """All pairs of a parameter and a statistic along the same axis, of each layer."""
    return tuple(
        Pair(layer.name, scale, variance)
        for layer in layers
        for variance in layer.vectors
        for scale in layer.vectors
        if scale.name.startswith("params/") and not variance.name.startswith("params/") and scale.axis == variance.axis
    )


def match_pairs(network: Network, variables: Variables, pairs: Sequence[Pair], *, key: jax.Array) -> jax.Array:
    """Which pairs are a scale and its variance, bool `[pairs]`. Pure; jits.

    No names are used: doubling a scale and quadrupling its variance keeps the network's function, which holds for no
    other pair of a parameter and a statistic.

    Args:
      network: the functions of the network.
      variables: its variables.
      pairs: from `pairs_of`.
      key: typed PRNG key of the images of the trials.
    """
    if not pairs:
        return jnp.zeros(0, bool)
    leaves = named_leaves(variables)
    names = sorted({vector.name for pair in pairs for vector in (pair.scale, pair.variance)})
    # The factor of each array in each trial; the first trial changes nothing.
    trials = [{}, *({pair.scale.name: 2.0, pair.variance.name: 4.0} for pair in pairs)]
    factors = jnp.array([[trial.get(name, 1.0) for name in names] for trial in trials])
    images = jax.random.uniform(key, (_PROBES, *network.image_shape))

    def logits(factor: jax.Array) -> jax.Array:
        changed = {name: (leaves[name] * factor[place]).astype(leaves[name].dtype) for place, name in enumerate(names)}
        return network.answer(replace_leaves(variables, changed), images)

    original, *others = jax.lax.map(logits, factors)
    largest = jnp.max(jnp.abs(original))
    same = [jnp.max(jnp.abs(changed - original)) <= _SAME * largest for changed in others]
    sound = [jnp.all(leaves[pair.variance.name].astype(jnp.float32) > 0) for pair in pairs]
    return jnp.stack(same) & jnp.stack(sound)


Gates = Mapping[str, jax.Array]
"""Whether each parameter is the scale of a normalisation, and so gates its neurons; names to bool scalars."""


def gates_of(network: Network, variables: Variables, layers: Sequence[Layer], *, key: jax.Array) -> Gates:
    """Which parameters of the layers are scales of normalisations; takes what `match_pairs` takes. Pure; jits."""
    # Layers that are added to each other share their normalisation: each pair is tried once.
    pairs = tuple({(pair.scale.name, pair.variance.name): pair for pair in pairs_of(layers)}.values())
    matches = match_pairs(network, variables, pairs, key=key)
    gates: dict[str, jax.Array] = {}
    for pair, same in zip(pairs, matches, strict=True):
        gates[pair.scale.name] = gates.get(pair.scale.name, jnp.bool_(False)) | same
    return gates


def check_gates(layers: Sequence[Layer], *, name: str) -> None:
    """Raises InputError, for a defence of that name, if no layer is followed by a normalisation with statistics."""
    if not pairs_of(layers):
        raise InputError(
            f"defense: expected a network whose convolutions are followed by normalisation with running statistics, "
            f"which {name} gates, found none; defences that need none are disarm, tsbd and ft"
        )


def open_gates(variables: Variables, gates: Gates) -> dict[str, jax.Array]:
    """A mask of ones for each gate, `{name: the parameter's shape}`."""
    leaves = named_leaves(variables)
    return {name: jnp.ones(leaves[name].shape, jnp.float32) for name in gates}


def apply_masks(variables: Variables, gates: Gates, masks: Mapping[str, jax.Array]) -> Variables:
    """The network with each neuron multiplied by its mask, through its normalisation; other parameters stay."""
    leaves = named_leaves(variables)
    changed = {
        name: jnp.where(gate, leaves[name] * masks[name].astype(leaves[name].dtype), leaves[name])
        for name, gate in gates.items()
    }
    return replace_leaves(variables, changed)


def close_gates(
    variables: Variables, gates: Gates, masks: Mapping[str, jax.Array], threshold: float | jax.Array
) -> Variables:
    """The network without the neurons whose masks are at most `threshold`."""
    return apply_masks(variables, gates, {name: (mask > threshold).astype(jnp.float32) for name, mask in masks.items()})


Factors = Mapping[str, jax.Array]
"""The factor of each parameter of `Gates`; names to arrays of their shapes."""


class PassMetrics(NamedTuple):
    """Metrics of one training-mode pass: mean cross-entropy and accuracy of the batch."""

    loss: jax.Array
    accuracy: jax.Array


FactorsFn = Callable[[Factors, Batch], tuple[PassMetrics, Factors]]
"""`(factors, batch) -> (PassMetrics, gradients of the loss with respect to the factors)`."""


def scale_params(variables: Variables, factors: Factors) -> Variables:
    """The network with parameters multiplied by `factors`, gates or not."""
    leaves = named_leaves(variables)
    changed = {name: (leaves[name] * factor).astype(leaves[name].dtype) for name, factor in factors.items()}
    return replace_leaves(variables, changed)


def factors_objective(network: Network, variables: Variables, *, axis_name: str | None = None) -> FactorsFn:
    """The mean cross-entropy of a batch in training mode, and its gradients with respect to factors of parameters.

    Args:
      network: the functions of the network.
      variables: its variables, which are constant.
      axis_name: mapped axis over which everything is averaged, see `objective.cross_entropy`.
    """

    def loss(factors: Factors, batch: Batch) -> tuple[jax.Array, jax.Array]:
        logits, _ = network.train(scale_params(variables, factors), batch.images)
        right = jnp.argmax(logits, axis=-1) == batch.labels
        return mean(jnp.mean(losses(logits, batch.labels)), axis_name), jnp.mean(right.astype(jnp.float32))

    loss_and_grads = channels_last(jax.value_and_grad(loss, has_aux=True))

    def objective(factors: Factors, batch: Batch) -> tuple[PassMetrics, Factors]:
        (value, accuracy), grads = loss_and_grads(factors, batch)
        return PassMetrics(value, mean(accuracy, axis_name)), mean(grads, axis_name)

    return objective


def descend(
    masks: Factors, opt_state: Any, grads: Factors, gates: Gates, optimizer: optax.GradientTransformation
) -> tuple[Factors, Any]:
    """One step of an optimiser on masks, clipped to [0, 1] afterwards; masks that are no gates stay 1."""
    own = {name: jnp.where(gate, grads[name], 0.0) for name, gate in gates.items()}
    updates, opt_state = optimizer.update(own, opt_state, masks)
    return jax.tree.map(lambda mask: jnp.clip(mask, 0.0, 1.0), optax.apply_updates(masks, updates)), opt_state


def masks_by_layer(layers: Sequence[Layer], gates: Gates, masks: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The smallest mask of each layer's neurons, `{layer name: [neurons]}`; 1 where a layer has no gate of its size."""
    smallest = {}
    for layer in layers:
        least = jnp.ones(layer.neurons)
        for name, axis in layer.vectors:
            if name in masks and masks[name].shape[axis] == layer.neurons:
                rest = tuple(place for place in range(masks[name].ndim) if place != axis)
                least = jnp.where(gates[name], jnp.minimum(least, jnp.min(masks[name], axis=rest)), least)
        smallest[layer.name] = least
    return smallest
