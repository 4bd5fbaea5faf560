"""Collectives on a mapped axis (`jax.pmap`, `jax.shard_map`): parts of a batch, sums and means over devices.

With `axis_name` None there is one device. A loss is summed or averaged over the axis *before* it is differentiated, and
its gradients are averaged afterwards. Both then hold whether or not the map sums gradients of replicated values
(`check_vma` of `jax.shard_map`).
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from otbr_jax.errors import InputError

T = TypeVar("T")


def per_device(batch_size: int, axis_name: str | None, *, name: str) -> int:
    """The batch size of each device of a mapped axis; raises InputError if the devices cannot share it evenly."""
    devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    if batch_size % devices:
        raise InputError(f"{name}: expected a multiple of {devices} devices, found {batch_size}")
    return batch_size // devices


def own_part(batch: T, axis_name: str | None, *, name: str) -> T:
    """A device's own part of a replicated batch, a pytree of arrays `[n, ...]`; raises as `per_device`."""
    if axis_name is None:
        return batch
    size = per_device(len(jax.tree.leaves(batch)[0]), axis_name, name=name)
    start = jax.lax.axis_index(axis_name) * size
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), batch)


def total(tree: T, axis_name: str | None) -> T:
    """The sum over devices."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def mean(tree: T, axis_name: str | None) -> T:
    """The mean over devices; integers, such as counters, are the same on all of them and stay."""
    if axis_name is None:
        return tree

    def average(leaf: Any) -> Any:
        return jax.lax.pmean(leaf, axis_name) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) else leaf

    return jax.tree.map(average, tree)


def largest(tree: T, axis_name: str | None) -> T:
    """The largest value over devices."""
    return tree if axis_name is None else jax.lax.pmax(tree, axis_name)
