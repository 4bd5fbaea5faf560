"""What a network answers many images with."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from otbr_jax.types import Network, Variables

_SHARED = 8  # devices, or fewer, that divide a batch of fewer images


def predict(network: Network, variables: Variables, images: jax.Array, *, batch_size: int = 512) -> jax.Array:
    """The classes int32 `[n]` that a network answers images `[n, h, w, c]` with, batch by batch.

    The last batch is filled up with copies, a small one so that devices can share it.
    """
    count = len(images)
    batch_size = min(batch_size, -(-count // _SHARED) * _SHARED)
    padded = -(-count // batch_size) * batch_size
    batches = images[jnp.arange(padded) % count].reshape(-1, batch_size, *images.shape[1:])

    def one_batch(batch: jax.Array) -> jax.Array:
        return jnp.argmax(network.answer(variables, batch), axis=-1)

    return jax.lax.map(one_batch, batches).reshape(-1)[:count].astype(jnp.int32)
