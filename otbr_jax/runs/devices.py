"""All devices as one mesh: batches are split over it, weights are copied to each device.

Steps know nothing about devices. Their network splits its images over the mesh (`shared`), and the compiler does the
rest: everything that is computed from the images stays where they are; statistics and gradients are means over all of
them. So a step that was written for one device runs on all.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from otbr_jax.errors import InputError
from otbr_jax.types import Network, Variables

AXIS = "batch"
"""The mesh's one axis."""


def batch_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh over `devices`, by default all there are: the local ones, and those of all other hosts."""
    return Mesh(np.array(jax.devices() if devices is None else devices), (AXIS,))


def first_devices(count: int) -> list[jax.Device] | None:
    """The first `count` local devices; None, which means all, for 0.

    Raises InputError if there are fewer, or if there are several processes.
    """
    if not count:
        return None
    local = jax.local_devices()
    if jax.process_count() > 1:
        raise InputError(f"--devices: expected 0, all devices, of {jax.process_count()} processes, found {count}")
    if not 0 < count <= len(local):
        raise InputError(
            f"--devices: expected at most {len(local)}, as many as there are ({local[0].device_kind}), found {count}"
        )
    return local[:count]


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies every array of `tree` to all devices of `mesh`; every process has to pass the same arrays."""
    if mesh.size == 1:  # the same program as in memory
        return jax.device_put(tree, mesh.devices.flat[0])
    whole = NamedSharding(mesh, PartitionSpec())
    if not is_spread(mesh):
        return jax.device_put(tree, whole)

    def copy(leaf: Any) -> jax.Array:
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            implementation = jax.random.key_impl(leaf)
            return jax.random.wrap_key_data(copy(jax.random.key_data(leaf)), impl=implementation)
        values = np.asarray(leaf)
        return jax.make_array_from_callback(values.shape, whole, lambda index: values[index])

    return jax.tree.map(copy, tree)


def is_spread(mesh: Mesh) -> bool:
    """Whether some of the devices belong to other processes."""
    return any(device.process_index != jax.process_index() for device in mesh.devices.flat)


def everywhere(mesh: Mesh) -> NamedSharding | None:
    """The sharding of outputs for `jax.jit`: every device has them whole; None with one device."""
    return None if mesh.size == 1 else NamedSharding(mesh, PartitionSpec())


def split_batch(batch: Any, mesh: Mesh) -> Any:
    """Inside jit: splits the first axis of every array over the mesh, so that each device computes its own part.

    A batch that devices cannot share evenly stays whole on each of them.
    """
    if mesh.size == 1:
        return batch
    parted = NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.tree.map(
        lambda leaf: leaf if len(leaf) % mesh.size else jax.lax.with_sharding_constraint(leaf, parted), batch
    )


def shared(network: Network, mesh: Mesh) -> Network:
    """A network that splits its images over the devices of `mesh`, under `jax.jit`.

    A batch that devices cannot share evenly stays whole on each (`check_batch_size` refuses those that cost time).
    """
    if mesh.size == 1:
        return network
    run, train = network.apply, network.apply_train

    def apply(variables: Variables, images: jax.Array) -> jax.Array:
        return run(variables, split_batch(images, mesh))

    def apply_train(variables: Variables, images: jax.Array) -> Any:
        assert train is not None
        return train(variables, split_batch(images, mesh))

    return dataclasses.replace(network, apply=apply, apply_train=apply_train if train else None)


def check_batch_size(batch_size: int, mesh: Mesh, *, name: str) -> None:
    """Raises InputError if the devices of `mesh` cannot share a batch of `batch_size` evenly."""
    if batch_size % mesh.size:
        less = batch_size // mesh.size * mesh.size
        near = f"{less} or {less + mesh.size}" if less else f"{mesh.size}"
        raise InputError(
            f"{name}: expected a multiple of the {mesh.size} devices, such as {near}, found {batch_size}; or take "
            "fewer --devices"
        )


class Collective(NamedTuple):
    """The collective operations of one kind in a compiled program.

    Attributes:
      instructions: how many; one inside a loop counts once.
      bytes: the size of all their results on one device.
      largest: the size of the largest result, in bytes.
    """

    instructions: int
    bytes: int
    largest: int


_COLLECTIVE = re.compile(
    r"= (?P<shapes>\(.*?\)|\S+) (?P<kind>all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)"
    r"(?:-start)?\("
)
_SHAPE = re.compile(r"\b(pred|[a-z]+?(\d+)\w*)\[([\d,]*)\]")


def collectives(program: jax.stages.Compiled) -> dict[str, Collective]:
    """The collectives of a compiled program by kind, such as `all-reduce`; none on one device."""
    kinds: dict[str, Collective] = {}
    for match in _COLLECTIVE.finditer(program.as_text() or ""):
        size = sum(_bytes(*shape.groups()) for shape in _SHAPE.finditer(match["shapes"]))
        old = kinds.get(match["kind"], Collective(0, 0, 0))
        kinds[match["kind"]] = Collective(old.instructions + 1, old.bytes + size, max(old.largest, size))
    return kinds


def _bytes(kind: str, bits: str | None, sides: str) -> int:
    width = 1 if kind == "pred" else int(bits or 0) // 8
    return width * int(np.prod([int(side) for side in sides.split(",") if side], dtype=np.int64))
