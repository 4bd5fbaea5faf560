"""Vision transformers (arXiv 2010.11929) with torchvision's layers and names."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from otbr_jax.errors import InputError
from otbr_jax.models.layers import LayerNorm, torch_uniform

PATCH = 16
"""Height and width of the patch that one token stands for."""

_xavier = nn.initializers.xavier_uniform()


class SelfAttention(nn.Module):
    """Scaled dot-product attention of every token to all; queries, keys and values come from one fused projection.

    Attributes:
      heads: number of heads, a divisor of the number of channels.
    """

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens `[n, t, d]` to the same shape."""
        n, tokens, features = x.shape
        kernel = self.param("in_proj_kernel", _xavier, (features, 3 * features))
        bias = self.param("in_proj_bias", nn.initializers.zeros, (3 * features,))

        def per_head(part: jax.Array) -> jax.Array:
            return part.reshape(n, tokens, self.heads, -1).transpose(0, 2, 1, 3)

        query, key, value = (per_head(part) for part in jnp.split(x @ kernel + bias, 3, axis=-1))
        weights = nn.softmax(query @ key.transpose(0, 1, 3, 2) / query.shape[-1] ** 0.5)
        out = (weights @ value).transpose(0, 2, 1, 3).reshape(n, tokens, features)
        return nn.Dense(features, kernel_init=torch_uniform, name="out_proj")(out)


class EncoderBlock(nn.Module):
    """LayerNorm and attention, LayerNorm and a two-layer perceptron, each added to its input.

    Attributes:
      heads: see `SelfAttention`.
    """

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens `[n, t, d]` to the same shape."""
        features = x.shape[-1]
        x = x + SelfAttention(self.heads, name="self_attention")(LayerNorm(name="ln_1")(x))
        out = nn.Dense(4 * features, kernel_init=_xavier, name="mlp.0")(LayerNorm(name="ln_2")(x))
        out = nn.gelu(out, approximate=False)
        return x + nn.Dense(features, kernel_init=_xavier, name="mlp.3")(out)


class VisionTransformer(nn.Module):
    """ViT on patches of 16 x 16 pixels, with a class token; the image size decides the number of tokens.

    It has no BatchNorm, and dropout is not applied: training mode is evaluation mode, without random numbers.

    Attributes:
      num_classes: number of logits.
      depth: number of encoder blocks as a tuple of one, (12,) for ViT-B.
      width: channels of a token (768 as published), in heads of 64.
      axis_name: unused.
    """

    num_classes: int
    depth: Sequence[int] = (12,)
    width: int = 768
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images `[n, h, w, c]` to logits `[n, num_classes]`; `train` changes nothing.

        Raises:
          InputError: if h or w is no multiple of 16, or the width no multiple of the number of heads.
        """
        del train
        n, height, width, _ = x.shape
        if height % PATCH or width % PATCH:
            raise InputError(f"model.image_shape: expected multiples of {PATCH}, found {height} x {width}")
        heads = max(1, self.width // 64)
        if self.width % heads:
            raise InputError(f"model.width: expected a multiple of its {heads} attention heads, found {self.width}")
        # Truncated normal with variance 1 / fan_in, as torchvision starts it.
        init = nn.initializers.lecun_normal()
        x = nn.Conv(self.width, (PATCH, PATCH), PATCH, padding=0, kernel_init=init, name="conv_proj")(x)
        x = x.reshape(n, -1, self.width)
        token = self.param("class_token", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (n, 1, self.width)), x], axis=1)
        x = x + self.param("encoder.pos_embedding", nn.initializers.normal(0.02), (1, x.shape[1], self.width))
        for i in range(sum(self.depth)):
            x = EncoderBlock(heads, name=f"encoder.layers.encoder_layer_{i}")(x)
        x = LayerNorm(name="encoder.ln")(x)
        return nn.Dense(self.num_classes, kernel_init=torch_uniform, name="heads.head")(x[:, 0])
