"""Residual networks (arXiv 1512.03385) with torchvision's layers and names, for large images and for small ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from otbr_jax.models.layers import BatchNorm, global_avg_pool, he_fan_out, max_pool, residual_stages, torch_uniform

_conv = partial(nn.Conv, padding=0, use_bias=False, kernel_init=he_fan_out)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each with BatchNorm, added to their input.

    Attributes:
      features: number of output channels.
      stride: stride of the first convolution and of the shortcut.
      padded: whether the shortcut pads channels with zeros (the paper's option A), not a convolution (option B).
      axis_name: see `BatchNorm`.
    """

    features: int
    stride: int = 1
    padded: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps activations `[n, h, w, c]` to `[n, h / stride, w / stride, features]`."""
        norm = partial(BatchNorm, axis_name=self.axis_name)
        out = _conv(self.features, (3, 3), self.stride, padding=1, name="conv1")(x)
        out = nn.relu(norm(name="bn1")(out, train=train))
        out = _conv(self.features, (3, 3), padding=1, name="conv2")(out)
        out = norm(name="bn2")(out, train=train)
        if self.padded and self.stride != 1:
            before = (self.features - x.shape[-1]) // 2
            beside = (before, self.features - x.shape[-1] - before)
            x = jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), beside))
        elif self.stride != 1 or x.shape[-1] != self.features:
            x = _conv(self.features, (1, 1), self.stride, name="downsample.0")(x)
            x = norm(name="downsample.1")(x, train=train)
        return nn.relu(out + x)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each with BatchNorm, added to their input; the 3x3 has the stride.

    Attributes:
      features: channels of the first two convolutions; four times as many leave.
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
        out = _conv(self.features, (1, 1), name="conv1")(x)
        out = nn.relu(norm(name="bn1")(out, train=train))
        out = _conv(self.features, (3, 3), self.stride, padding=1, name="conv2")(out)
        out = nn.relu(norm(name="bn2")(out, train=train))
        out = _conv(4 * self.features, (1, 1), name="conv3")(out)
        out = norm(name="bn3")(out, train=train)
        if self.stride != 1 or x.shape[-1] != 4 * self.features:
            x = _conv(4 * self.features, (1, 1), self.stride, name="downsample.0")(x)
            x = norm(name="downsample.1")(x, train=train)
        return nn.relu(out + x)


class ResNet(nn.Module):
    """ResNet: for large images, a 7x7 stem and a max pool divide the resolution by four before the first stage.

    Attributes:
      num_classes: number of logits.
      depth: blocks per stage, (2, 2, 2, 2) for ResNet18; each later stage halves the resolution.
      width: channels of the stem and of the first stage, doubled at every later stage (64 as published).
      block: `BasicBlock` or `Bottleneck`.
      small_images: whether the stem is a 3x3 convolution that keeps the resolution, as for CIFAR-10.
      axis_name: see `BatchNorm`.
    """

    num_classes: int
    depth: Sequence[int] = (2, 2, 2, 2)
    width: int = 64
    block: Callable[..., nn.Module] = BasicBlock
    small_images: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images `[n, h, w, c]` to logits `[n, num_classes]`."""
        size, stride = ((3, 3), 1) if self.small_images else ((7, 7), 2)
        x = _conv(self.width, size, stride, padding=size[0] // 2, name="conv1")(x)
        x = nn.relu(BatchNorm(axis_name=self.axis_name, name="bn1")(x, train=train))
        if not self.small_images:
            x = max_pool(x, 3, 2, padding=1)
        block = partial(self.block, axis_name=self.axis_name)
        x = residual_stages(x, block, depth=self.depth, width=self.width, train=train)
        return nn.Dense(self.num_classes, kernel_init=torch_uniform, name="fc")(global_avg_pool(x))
