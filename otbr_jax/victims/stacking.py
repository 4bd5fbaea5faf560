"""Victims in a stack: networks of one shape that are trained at once, under one `jax.vmap`.

They share the architecture, the number of images and the settings. Their initial weights, their poisoned images and
their keys differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from otbr_jax.attacks.attack import Assets, InTraining
from otbr_jax.errors import InputError
from otbr_jax.plan import stack_trees, tree_entry
from otbr_jax.runs.devices import replicate
from otbr_jax.types import Network, Variables
from otbr_jax.victims.training import History, Trained, TrainingConfig, TrainingSet, train


def train_stack(
    network: Network,
    variables: Sequence[Variables],
    data: Sequence[TrainingSet],
    *,
    keys: jax.Array,
    config: TrainingConfig,
    mesh: Mesh,
    assets: Sequence[Assets] | None = None,
    attack: InTraining | None = None,
    on_epoch: Callable[..., None] = lambda **shown: None,
) -> list[Trained]:
    """Trains several networks at once. Each becomes what `training.train` makes of it alone, but for rounding.

    Arrays of the data that are the same for all of them, such as images without poison, are stored once.

    Args:
      network: the functions of all of them.
      variables: the initial variables of each.
      data: the training set of each, in equal shapes.
      keys: typed PRNG keys `[networks]`; see `train`.
      config: epochs, batch size, learning rate, ...
      mesh: devices that share each batch.
      assets: the arrays of each one's attack, in equal shapes.
      attack: what the attack does in each step, the same for all.
      on_epoch: called after each epoch with means over the stack.

    Returns:
      One `Trained` for each, in order: `seconds` is its share of the wall time, `images_per_second` that of the stack.

    Raises:
      InputError: if they are not equally many, or their shapes differ; also as `train`.
    """
    count = len(keys)
    own = [{}] * count if assets is None else assets
    if not len(variables) == len(data) == len(own) == count:
        counts = f"{len(variables)} networks, {len(data)} data sets, {len(own)} attacks' arrays and {count} keys"
        raise InputError(f"train_stack: expected equally many of each, found {counts}")
    for name, trees in (("variables", variables), ("data", data), ("assets", own)):
        _check_shapes(trees, name=name)
    together = TrainingSet(*(_together(arrays) for arrays in zip(*data, strict=True)))
    start, placed, arrays, key = replicate((stack_trees(variables), together, stack_trees(own), keys), mesh)
    trained = train(
        network, start, placed, key=key, config=config, mesh=mesh, assets=arrays, attack=attack, on_epoch=on_epoch
    )
    return [
        Trained(
            tree_entry(trained.variables, index),
            tree_entry(trained.assets, index),
            History(*(values[:, index] for values in trained.history)),
            trained.seconds / count,
            trained.images_per_second,
        )
        for index in range(count)
    ]


def _together(arrays: Sequence[jax.Array]) -> jax.Array:
    """One array that all share if it is the same for all, else a stack."""
    first = arrays[0]
    same = all(other is first or np.array_equal(other, first) for other in arrays[1:])
    return first if same else jnp.stack(arrays)


def _check_shapes(trees: Sequence[object], *, name: str) -> None:
    shapes = [jax.tree.map(lambda leaf: (jnp.shape(leaf), str(jnp.result_type(leaf))), tree) for tree in trees]
    for index, other in enumerate(shapes):
        if other != shapes[0]:
            raise InputError(
                f"train_stack: {name}: expected the shapes of the first network's, found others at index {index}; "
                "train those in a stack of their own"
            )
