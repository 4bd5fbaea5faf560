"""VGG (arXiv 1409.1556) with BatchNorm: torchvision's, and those for small images."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax

from otbr_jax.models.layers import BatchNorm, adaptive_avg_pool, global_avg_pool, he_fan_out, max_pool


class VGG(nn.Module):
    """3x3 convolutions with BatchNorm and ReLU, then three dense layers on 7 x 7 positions.

    Dropout is not applied, in training mode either, so that a pass needs no random numbers.

    Attributes:
      num_classes: number of logits.
      depth: convolutions per stage, (1, 1, 2, 2, 2) for VGG11; a max pool after each stage halves the resolution.
      width: channels of the first stage, doubled per stage up to eight times as many (64 as published). The hidden
        dense layers have 64 times as many.
      axis_name: see `BatchNorm`.
    """

    num_classes: int
    depth: Sequence[int] = (1, 1, 2, 2, 2)
    width: int = 64
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images `[n, h, w, c]` to logits `[n, num_classes]`."""
        x = _convolutions(x, self.depth, self.width, train=train, axis_name=self.axis_name)
        x = adaptive_avg_pool(max_pool(x, 2, 2), 7)
        # PyTorch flattens channels first; in that order the dense kernel means the same here.
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        normal = nn.initializers.normal(0.01)
        for name in ("classifier.0", "classifier.3"):
            x = nn.relu(nn.Dense(64 * self.width, kernel_init=normal, name=name)(x))
        return nn.Dense(self.num_classes, kernel_init=normal, name="classifier.6")(x)


class PooledVGG(nn.Module):
    """A VGG for small images: no max pool after the last stage, the mean over all positions, and one dense layer.

    Attributes:
      num_classes: number of logits.
      depth: convolutions per stage; a max pool between stages halves the resolution.
      width: channels of the first stage, doubled per stage up to eight times as many.
      axis_name: see `BatchNorm`.
    """

    num_classes: int
    depth: Sequence[int] = (1, 1, 2, 2)
    width: int = 64
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images `[n, h, w, c]` to logits `[n, num_classes]`."""
        x = _convolutions(x, self.depth, self.width, train=train, axis_name=self.axis_name)
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01), name="classifier")(x.mean((1, 2)))


class SmallVGG(nn.Module):
    """A VGG for images of 32 x 32: five max pools leave one position, and few or no hidden dense layers.

    Attributes:
      num_classes: number of logits.
      depth: convolutions per stage; a max pool after each halves the resolution.
      width: channels of the first stage, doubled per stage up to eight times as many.
      hidden: whether there are two hidden dense layers, as pytorch-cifar-models has them; pytorch-cifar has none.
      axis_name: see `BatchNorm`.
    """

    num_classes: int
    depth: Sequence[int] = (2, 2, 3, 3, 3)
    width: int = 64
    hidden: bool = True
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images `[n, h, w, c]` to logits `[n, num_classes]`."""
        x = max_pool(_convolutions(x, self.depth, self.width, train=train, axis_name=self.axis_name), 2, 2)
        x = global_avg_pool(x)
        normal = nn.initializers.normal(0.01)
        if not self.hidden:
            return nn.Dense(self.num_classes, kernel_init=normal, name="classifier")(x)
        for name in ("classifier.0", "classifier.3"):
            x = nn.relu(nn.Dense(8 * self.width, kernel_init=normal, name=name)(x))
        return nn.Dense(self.num_classes, kernel_init=normal, name="classifier.6")(x)


def _convolutions(x: jax.Array, depth: Sequence[int], width: int, *, train: bool, axis_name: str | None) -> jax.Array:
    """The stages, with a max pool between them."""
    position = 0  # in PyTorch's list of layers, where a convolution, its BatchNorm and ReLU, and a pool have theirs
    for stage, convolutions in enumerate(depth):
        if stage > 0:
            x = max_pool(x, 2, 2)
            position += 1
        for _ in range(convolutions):
            features = width * min(2**stage, 8)
            x = nn.Conv(features, (3, 3), padding=1, kernel_init=he_fan_out, name=f"features.{position}")(x)
            norm = BatchNorm(axis_name=axis_name, name=f"features.{position + 1}")
            x = nn.relu(norm(x, train=train))
            position += 3
    return x
