"""Predictions of a network for many images."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from otbr_jax.types import Network, Variables

_SHARED = 8  # the largest number of devices that can share a batch of fewer images


def predict(network: Network, variables: Variables, images: jax.Array, *, batch_size: int = 512) -> jax.Array:
    """The predicted classes, int32 `[n]`, of images `[n, h, w, c]`, batch by batch.

    The last batch is padded with copies, to a size that devices can share.
    """
    count = len(images)
    batch_size = min(batch_size, -(-count // _SHARED) * _SHARED)
    padded = -(-count // batch_size) * batch_size
    batches = images[jnp.arange(padded) % count].reshape(-1, batch_size, *images.shape[1:])

    def one_batch(batch: jax.Array) -> jax.Array:
        return jnp.argmax(network.answer(variables, batch), axis=-1)

    return jax.lax.map(one_batch, batches).reshape(-1)[:count].astype(jnp.int32)
