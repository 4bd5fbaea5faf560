"""Pre-activation residual networks (arXiv 1603.05027) as the backdoor literature's toolkit builds them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax

from otbr_jax.models.layers import BatchNorm, global_avg_pool, residual_stages, torch_uniform

_conv = partial(nn.Conv, padding=0, use_bias=False, kernel_init=torch_uniform)


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
        norm = partial(BatchNorm, axis_name=self.axis_name)
        out = nn.relu(norm(name="bn1")(x, train=train))
        shortcut = x
        if self.stride != 1 or x.shape[-1] != self.features:
            shortcut = _conv(self.features, (1, 1), self.stride, name="shortcut.0")(out)
        out = _conv(self.features, (3, 3), self.stride, padding=1, name="conv1")(out)
        out = nn.relu(norm(name="bn2")(out, train=train))
        return _conv(self.features, (3, 3), padding=1, name="conv2")(out) + shortcut


class PreActBottleneck(nn.Module):
    """BatchNorm-ReLU-conv three times (1x1, 3x3, 1x1), four times as many channels leaving as in the middle.

    Attributes:
      features: channels of the first two convolutions.
      stride: stride of the 3x3 convolution and of the shortcut.
      axis_name: see `BatchNorm`.
    """

    features: int
    stride: int = 1
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps activations `[n, h, w, c]` to `[n, h / stride, w / stride, 4 * features]`."""
        norm = partial(BatchNorm, axis_name=self.axis_name)
        out = nn.relu(norm(name="bn1")(x, train=train))
        shortcut = x
        if self.stride != 1 or x.shape[-1] != 4 * self.features:
            shortcut = _conv(4 * self.features, (1, 1), self.stride, name="shortcut.0")(out)
        out = _conv(self.features, (1, 1), name="conv1")(out)
        out = nn.relu(norm(name="bn2")(out, train=train))
        out = _conv(self.features, (3, 3), self.stride, padding=1, name="conv2")(out)
        out = nn.relu(norm(name="bn3")(out, train=train))
        return _conv(4 * self.features, (1, 1), name="conv3")(out) + shortcut


class PreActResNet(nn.Module):
    """PreAct-ResNet with a 3x3 stem and *no* BatchNorm-ReLU before the global average pool.

    Attributes:
      num_classes: number of logits.
      depth: blocks per stage, (2, 2, 2, 2) for PreAct-ResNet18; each later stage halves the resolution.
      width: channels of the stem and of the first stage, doubled at every later stage (64 as published).
      block: `PreActBlock` or `PreActBottleneck`.
      axis_name: see `BatchNorm`.
    """

    num_classes: int
    depth: Sequence[int] = (2, 2, 2, 2)
    width: int = 64
    block: type[PreActBlock] | type[PreActBottleneck] = PreActBlock
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images `[n, h, w, c]` to logits `[n, num_classes]`."""
        x = _conv(self.width, (3, 3), padding=1, name="conv1")(x)
        block = partial(self.block, axis_name=self.axis_name)
        x = residual_stages(x, block, depth=self.depth, width=self.width, train=train)
        return nn.Dense(self.num_classes, kernel_init=torch_uniform, name="linear")(global_avg_pool(x))
