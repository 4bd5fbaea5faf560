"""All local devices as one mesh: batches are split over it, weights are copied to each device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from otbr_jax.errors import InputError


def local_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh named `batch` over `devices`, by default all local ones."""
    return Mesh(np.array(jax.local_devices() if devices is None else devices), ("batch",))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies every array of `tree` to all devices of `mesh`."""
    if mesh.size == 1:  # the same program as in memory
        return jax.device_put(tree, mesh.devices.flat[0])
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def split_batch(batch: Any, mesh: Mesh) -> Any:
    """Inside jit: splits the first axis of every array over the mesh, so that each device makes its own part."""
    if mesh.size == 1:
        return batch
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec("batch")))


def check_batch_size(batch_size: int, mesh: Mesh, *, name: str) -> None:
    """Raises InputError if the devices of `mesh` cannot share a batch of `batch_size` evenly."""
    if batch_size % mesh.size:
        raise InputError(f"{name}: expected a multiple of the {mesh.size} local devices, found {batch_size}")
