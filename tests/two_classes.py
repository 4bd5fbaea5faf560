"""A network of two classes that compiles at once: what trainings are tested on."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from otbr_jax.models.registry import network_from_flax


class Small(nn.Module):
    """A convolution with BatchNorm, and a classifier."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3), name="conv")(x))
        return nn.Dense(2)(nn.relu(x).mean((1, 2)))


NETWORK = network_from_flax(Small(), image_shape=(8, 8, 1), num_classes=2)
init = jax.jit(lambda key: Small().init(key, jnp.zeros((1, 8, 8, 1)), train=True))
