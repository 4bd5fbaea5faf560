"""Wide residual networks (arXiv 1605.07146), with the names of their most used PyTorch version."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax

from otbr_jax.models.layers import BatchNorm, global_avg_pool, he_fan_out, torch_uniform

_STEM = 16
_conv = partial(nn.Conv, padding=0, use_bias=False, kernel_init=he_fan_out)


class WideBlock(nn.Module):
    """BatchNorm-ReLU-conv twice; where channels change, the shortcut's 1x1 convolution starts after the first ReLU.

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
        norm = partial(BatchNorm, axis_name=self.axis_name)
        out = nn.relu(norm(name="bn1")(x, train=train))
        if x.shape[-1] != self.features:
            x = _conv(self.features, (1, 1), self.stride, name="convShortcut")(out)
        out = _conv(self.features, (3, 3), self.stride, padding=1, name="conv1")(out)
        out = nn.relu(norm(name="bn2")(out, train=train))
        return _conv(self.features, (3, 3), padding=1, name="conv2")(out) + x


class WideResNet(nn.Module):
    """Wide ResNet with a 3x3 stem of 16 channels, three stages, and a last BatchNorm and ReLU.

    Attributes:
      num_classes: number of logits.
      depth: blocks per stage, (4, 4, 4) for 28 layers; each later stage halves the resolution.
      width: channels of the first stage, doubled at every later stage (160 as published with a factor of 10).
      axis_name: see `BatchNorm`.
    """

    num_classes: int
    depth: Sequence[int] = (4, 4, 4)
    width: int = 160
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images `[n, h, w, c]` to logits `[n, num_classes]`."""
        x = _conv(_STEM, (3, 3), padding=1, name="conv1")(x)
        for stage, blocks in enumerate(self.depth):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                name = f"block{stage + 1}.layer.{i}"
                x = WideBlock(self.width * 2**stage, stride, self.axis_name, name=name)(x, train=train)
        x = nn.relu(BatchNorm(axis_name=self.axis_name, name="bn1")(x, train=train))
        return nn.Dense(self.num_classes, kernel_init=torch_uniform, name="fc")(global_avg_pool(x))
