"""Pre-activation residual networks (arXiv 1603.05027) as the backdoor literature's toolkit builds them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from otbr_jax.models.layers import BatchNorm, torch_uniform


class PreActBlock(nn.Module):
    """BatchNorm-ReLU-conv twice; the 1x1 shortcut convolution starts after the first BatchNorm-ReLU.

    Attributes:
      features: number of output channels.
      stride: stride of the first convolution and of the shortcut.
      axis_name: see `BatchNorm`.
    """

    features: int
    stride: int = 1
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps activations `[n, h, w, c]` to `[n, h / stride, w / stride, features]`."""
        conv = partial(nn.Conv, self.features, use_bias=False, kernel_init=torch_uniform)
        norm = partial(BatchNorm, axis_name=self.axis_name)
        out = nn.relu(norm(name="bn1")(x, train=train))
        shortcut = x
        if self.stride != 1 or x.shape[-1] != self.features:
            shortcut = conv((1, 1), self.stride, padding=0, name="shortcut")(out)
        out = conv((3, 3), self.stride, padding=1, name="conv1")(out)
        out = nn.relu(norm(name="bn2")(out, train=train))
        return conv((3, 3), padding=1, name="conv2")(out) + shortcut


class PreActResNet(nn.Module):
    """PreAct-ResNet with basic blocks and *no* BatchNorm-ReLU before the global average pool.

    Attributes:
      num_classes: number of logits.
      stage_sizes: blocks per stage, (2, 2, 2, 2) for PreAct-ResNet18; each later stage halves the resolution.
      width: channels of the stem and of the first stage, doubled at every later stage (64 as published).
      axis_name: see `BatchNorm`.
    """

    num_classes: int
    stage_sizes: Sequence[int] = (2, 2, 2, 2)
    width: int = 64
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images `[n, h, w, c]` to logits `[n, num_classes]`."""
        x = nn.Conv(self.width, (3, 3), padding=1, use_bias=False, kernel_init=torch_uniform, name="conv1")(x)
        for stage, blocks in enumerate(self.stage_sizes):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                features = self.width * 2**stage
                name = f"layer{stage + 1}_{block}"
                x = PreActBlock(features, stride, axis_name=self.axis_name, name=name)(x, train=train)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, kernel_init=torch_uniform, name="linear")(x)
