"""ConvNeXt (arXiv 2201.03545) with torchvision's layers and names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax

from otbr_jax.models.layers import LayerNorm, global_avg_pool

_init = nn.initializers.truncated_normal(0.02)
_conv = partial(nn.Conv, padding=0, kernel_init=_init)
_dense = partial(nn.Dense, kernel_init=_init)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7 convolution, LayerNorm, two pointwise layers and a scale per channel, added to the input."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps activations `[n, h, w, c]` to the same shape."""
        features = x.shape[-1]
        # PyTorch's axes are C, H, W; so is the shape of what it stores.
        scale = self.param("layer_scale", nn.initializers.constant(1e-6), (features, 1, 1))
        out = _conv(features, (7, 7), padding=3, feature_group_count=features, name="block.0")(x)
        out = LayerNorm(name="block.2")(out)
        out = nn.gelu(_dense(4 * features, name="block.3")(out), approximate=False)
        out = _dense(features, name="block.5")(out)
        return x + scale.reshape(features) * out


class ConvNeXt(nn.Module):
    """ConvNeXt: stages of `ConvNeXtBlock`, between them LayerNorm and a 2x2 convolution of stride 2.

    It has no BatchNorm, and stochastic depth is not applied: training mode is evaluation mode, without random numbers.

    Attributes:
      num_classes: number of logits.
      depth: blocks per stage, (3, 3, 9, 3) for ConvNeXt-Tiny.
      width: channels of the first stage, doubled at every later stage (96 as published).
      axis_name: unused.
    """

    num_classes: int
    depth: Sequence[int] = (3, 3, 9, 3)
    width: int = 96
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images `[n, h, w, c]` to logits `[n, num_classes]`; `train` changes nothing."""
        del train
        x = _conv(self.width, (4, 4), 4, name="features.0.0")(x)
        x = LayerNorm(name="features.0.1")(x)
        for stage, blocks in enumerate(self.depth):
            if stage > 0:
                x = LayerNorm(name=f"features.{2 * stage}.0")(x)
                x = _conv(self.width * 2**stage, (2, 2), 2, name=f"features.{2 * stage}.1")(x)
            for i in range(blocks):
                x = ConvNeXtBlock(name=f"features.{2 * stage + 1}.{i}")(x)
        x = LayerNorm(name="classifier.0")(global_avg_pool(x))
        return _dense(self.num_classes, name="classifier.2")(x)
