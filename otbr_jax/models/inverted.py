"""Networks of inverted residual blocks: MobileNetV2 for small images, MobileNetV3-Large and EfficientNet-B0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax

from otbr_jax.models.layers import BatchNorm, SqueezeExcitation, global_avg_pool, he_fan_out, torch_uniform

Activation = Callable[[jax.Array], jax.Array]

_conv = partial(nn.Conv, use_bias=False, kernel_init=he_fan_out)


class Block(NamedTuple):
    """An inverted residual block: 1x1 convolution to more channels, depthwise convolution, 1x1 to fewer.

    Attributes:
      expanded: channels in the middle.
      features: channels that leave.
      size: of the depthwise kernel.
      stride: of the depthwise convolution.
      squeezed: channels of the gate, 0 for no gate.
      activation: after the first two convolutions.
    """

    expanded: int
    features: int
    size: int
    stride: int
    squeezed: int
    activation: Activation


class InvertedResidual(nn.Module):
    """A `Block` with torchvision's names, which number what there is.

    Attributes:
      block: its sizes.
      norm: `name -> normalisation`.
      squeeze_activation: of the gate.
      gate: of the gate.
    """

    block: Block
    norm: Callable[..., nn.Module]
    squeeze_activation: Activation
    gate: Activation

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps activations `[n, h, w, c]` to `[n, h / stride, w / stride, features]`."""
        block, out, place = self.block, x, 0

        def normalised(out: jax.Array, place: int) -> jax.Array:
            norm: Callable[..., jax.Array] = self.norm(name=f"block.{place}.1")
            return norm(out, train=train)

        if block.expanded != x.shape[-1]:
            out = _conv(block.expanded, (1, 1), name="block.0.0")(out)
            out, place = block.activation(normalised(out, place)), 1
        size, padding = (block.size, block.size), block.size // 2
        name, groups = f"block.{place}.0", block.expanded
        out = _conv(groups, size, block.stride, padding=padding, feature_group_count=groups, name=name)(out)
        out, place = block.activation(normalised(out, place)), place + 1
        if block.squeezed:
            gate = SqueezeExcitation(block.squeezed, self.squeeze_activation, self.gate, name=f"block.{place}")
            out, place = gate(out), place + 1
        out = _conv(block.features, (1, 1), name=f"block.{place}.0")(out)
        out = normalised(out, place)
        return out + x if block.stride == 1 and block.features == x.shape[-1] else out


class EfficientNet(nn.Module):
    """EfficientNet-B0 (arXiv 1905.11946); stochastic depth and dropout are not applied, in training mode either.

    Attributes:
      num_classes: number of logits.
      depth: blocks per stage.
      width: channels of the stem (32 as published); all others are in proportion.
      axis_name: see `BatchNorm`.
    """

    num_classes: int
    depth: Sequence[int] = (1, 2, 2, 3, 3, 4, 1)
    width: int = 32
    axis_name: str | None = None

    # Expansion, channels, kernel size and first stride of each stage.
    stages = (
        (1, 16, 3, 1),
        (6, 24, 3, 2),
        (6, 40, 5, 2),
        (6, 80, 3, 2),
        (6, 112, 5, 1),
        (6, 192, 5, 2),
        (6, 320, 3, 1),
    )

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images `[n, h, w, c]` to logits `[n, num_classes]`."""
        norm = partial(BatchNorm, axis_name=self.axis_name)
        scaled = partial(_scaled, width=self.width, published=32)
        x = _conv(self.width, (3, 3), 2, padding=1, name="features.0.0")(x)
        x = nn.silu(norm(name="features.0.1")(x, train=train))
        for number, (depth, (expansion, features, size, stride)) in enumerate(
            zip(self.depth, self.stages, strict=True)
        ):
            for i in range(depth):
                inputs = x.shape[-1]
                block = Block(
                    expansion * inputs, scaled(features), size, stride if i == 0 else 1, max(1, inputs // 4), nn.silu
                )
                name = f"features.{number + 1}.{i}"
                x = InvertedResidual(block, norm, nn.silu, nn.sigmoid, name=name)(x, train=train)
        last = f"features.{len(self.stages) + 1}"
        x = _conv(4 * x.shape[-1], (1, 1), name=f"{last}.0")(x)
        x = global_avg_pool(nn.silu(norm(name=f"{last}.1")(x, train=train)))
        return nn.Dense(self.num_classes, kernel_init=torch_uniform, name="classifier.1")(x)


class MobileNetV3(nn.Module):
    """MobileNetV3-Large (arXiv 1905.02244); dropout is not applied, in training mode either.

    Attributes:
      num_classes: number of logits.
      depth: blocks per stage.
      width: channels of the stem (16 as published); all others are in proportion.
      axis_name: see `BatchNorm`.
    """

    num_classes: int
    depth: Sequence[int] = (1, 2, 3, 4, 2, 3)
    width: int = 16
    axis_name: str | None = None

    # Channels, kernel size, first stride, gate, activation, and the channels in the middle of each block as published.
    stages = (
        (16, 3, 1, False, nn.relu, (16,)),
        (24, 3, 2, False, nn.relu, (64, 72)),
        (40, 5, 2, True, nn.relu, (72, 120, 120)),
        (80, 3, 2, False, nn.hard_swish, (240, 200, 184, 184)),
        (112, 3, 1, True, nn.hard_swish, (480, 672)),
        (160, 5, 2, True, nn.hard_swish, (672, 960, 960)),
    )

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images `[n, h, w, c]` to logits `[n, num_classes]`."""
        norm = partial(BatchNorm, momentum=0.99, epsilon=1e-3, axis_name=self.axis_name)
        scaled = partial(_scaled, width=self.width, published=16)
        x = _conv(self.width, (3, 3), 2, padding=1, name="features.0.0")(x)
        x = nn.hard_swish(norm(name="features.0.1")(x, train=train))
        place = 1
        for depth, (features, size, stride, gated, activation, published) in zip(self.depth, self.stages, strict=True):
            for i in range(depth):
                expanded = scaled(published[min(i, len(published) - 1)])
                squeezed = _in_eights(expanded // 4) if gated else 0
                block = Block(expanded, scaled(features), size, stride if i == 0 else 1, squeezed, activation)
                name = f"features.{place}"
                x = InvertedResidual(block, norm, nn.relu, nn.hard_sigmoid, name=name)(x, train=train)
                place += 1
        x = _conv(6 * x.shape[-1], (1, 1), name=f"features.{place}.0")(x)
        x = global_avg_pool(nn.hard_swish(norm(name=f"features.{place}.1")(x, train=train)))
        x = nn.Dense(scaled(1280), kernel_init=nn.initializers.normal(0.01), name="classifier.0")(x)
        x = nn.hard_swish(x)
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01), name="classifier.3")(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 (arXiv 1801.04381) for small images, as pytorch-cifar has it: ReLU, and first strides of 1.

    Attributes:
      num_classes: number of logits.
      depth: blocks per stage.
      width: channels of the stem (32 as published); all others are in proportion.
      axis_name: see `BatchNorm`.
    """

    num_classes: int
    depth: Sequence[int] = (1, 2, 3, 4, 3, 3, 1)
    width: int = 32
    axis_name: str | None = None

    # Expansion, channels and first stride of each stage.
    stages = ((1, 16, 1), (6, 24, 1), (6, 32, 2), (6, 64, 2), (6, 96, 1), (6, 160, 2), (6, 320, 1))

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images `[n, h, w, c]` to logits `[n, num_classes]`."""
        norm = partial(BatchNorm, axis_name=self.axis_name)
        scaled = partial(_scaled, width=self.width, published=32)
        x = _conv(self.width, (3, 3), padding=1, name="conv1")(x)
        x = nn.relu(norm(name="bn1")(x, train=train))
        place = 0
        for depth, (expansion, features, stride) in zip(self.depth, self.stages, strict=True):
            for i in range(depth):
                block = ShortcutBlock(
                    expansion * x.shape[-1], scaled(features), stride if i == 0 else 1, norm, name=f"layers.{place}"
                )
                x, place = block(x, train=train), place + 1
        x = _conv(scaled(1280), (1, 1), name="conv2")(x)
        x = global_avg_pool(nn.relu(norm(name="bn2")(x, train=train)))
        return nn.Dense(self.num_classes, kernel_init=torch_uniform, name="linear")(x)


class ShortcutBlock(nn.Module):
    """pytorch-cifar's inverted residual block: at stride 1 there is always a shortcut, of a convolution if need be.

    Attributes:
      expanded: channels in the middle.
      features: channels that leave.
      stride: of the depthwise convolution.
      norm: `name -> normalisation`.
    """

    expanded: int
    features: int
    stride: int
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps activations `[n, h, w, c]` to `[n, h / stride, w / stride, features]`."""

        def normalised(out: jax.Array, name: str) -> jax.Array:
            norm: Callable[..., jax.Array] = self.norm(name=name)
            return norm(out, train=train)

        out = nn.relu(normalised(_conv(self.expanded, (1, 1), name="conv1")(x), "bn1"))
        wide = partial(_conv, self.expanded, (3, 3), self.stride, padding=1, feature_group_count=self.expanded)
        out = nn.relu(normalised(wide(name="conv2")(out), "bn2"))
        out = normalised(_conv(self.features, (1, 1), name="conv3")(out), "bn3")
        if self.stride != 1:
            return out
        if x.shape[-1] != self.features:
            x = normalised(_conv(self.features, (1, 1), name="shortcut.0")(x), "shortcut.1")
        return out + x


def _scaled(channels: int, *, width: int, published: int) -> int:
    return max(1, channels * width // published)


def _in_eights(channels: int) -> int:
    """The nearest multiple of 8 that is not below nine tenths of the number."""
    rounded = max(8, (channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
