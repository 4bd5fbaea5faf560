"""Densely connected networks (arXiv 1608.06993) with torchvision's layers and names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from otbr_jax.models.layers import BatchNorm, global_avg_pool, max_pool, torch_uniform

_conv = partial(nn.Conv, padding=0, use_bias=False, kernel_init=nn.initializers.he_normal())


class DenseLayer(nn.Module):
    """BatchNorm-ReLU-conv twice (1x1, 3x3), appended to the channels it has read.

    Attributes:
      growth: number of new channels; four times as many leave the 1x1 convolution.
      axis_name: see `BatchNorm`.
    """

    growth: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps activations `[n, h, w, c]` to `[n, h, w, c + growth]`."""
        norm = partial(BatchNorm, axis_name=self.axis_name)
        out = nn.relu(norm(name="norm1")(x, train=train))
        out = _conv(4 * self.growth, (1, 1), name="conv1")(out)
        out = nn.relu(norm(name="norm2")(out, train=train))
        out = _conv(self.growth, (3, 3), padding=1, name="conv2")(out)
        return jnp.concatenate([x, out], axis=-1)


class DenseNet(nn.Module):
    """DenseNet-BC: dense blocks, between them transitions that halve the channels and the resolution.

    Attributes:
      num_classes: number of logits.
      depth: layers per dense block, (6, 12, 24, 16) for DenseNet121.
      width: channels of the stem (64 as published); every layer adds half as many.
      axis_name: see `BatchNorm`.
    """

    num_classes: int
    depth: Sequence[int] = (6, 12, 24, 16)
    width: int = 64
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images `[n, h, w, c]` to logits `[n, num_classes]`."""
        norm = partial(BatchNorm, axis_name=self.axis_name)
        x = _conv(self.width, (7, 7), 2, padding=3, name="features.conv0")(x)
        x = nn.relu(norm(name="features.norm0")(x, train=train))
        x = max_pool(x, 3, 2, padding=1)
        for block, layers in enumerate(self.depth, start=1):
            for i in range(1, layers + 1):
                name = f"features.denseblock{block}.denselayer{i}"
                x = DenseLayer(max(1, self.width // 2), self.axis_name, name=name)(x, train=train)
            if block < len(self.depth):
                x = nn.relu(norm(name=f"features.transition{block}.norm")(x, train=train))
                x = _conv(x.shape[-1] // 2, (1, 1), name=f"features.transition{block}.conv")(x)
                x = nn.avg_pool(x, (2, 2), (2, 2))
        # The last BatchNorm bears the number that torchvision gave it, whatever the depth.
        x = nn.relu(norm(name="features.norm5")(x, train=train))
        return nn.Dense(self.num_classes, kernel_init=torch_uniform, name="classifier")(global_avg_pool(x))
