"""Layers that follow PyTorch's semantics, so that checkpoints mean the same on both sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.errors import InputError

# PyTorch's default for convolutions and dense layers: uniform in +-1/sqrt(fan_in).
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

# He et al. (arXiv 1502.01852) in the variant of torchvision's ResNets and VGGs, which keeps the gradient's variance.
he_fan_out = nn.initializers.variance_scaling(2, "fan_out", "normal")

# As ConvNeXt and ViT publish it. Flax's faster variance, the difference of two moments, loses digits PyTorch keeps.
LayerNorm = partial(nn.LayerNorm, epsilon=1e-6, use_fast_variance=False)


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with PyTorch's running statistics.

    Differs from `flax.linen.BatchNorm` in one number that Flax does not offer: the running variance is updated
    with the *unbiased* batch variance (n / (n - 1)), as `torch.nn.BatchNorm2d` does.

    Attributes:
      momentum: weight of the old running statistics (PyTorch's 0.1 is 0.9 here).
      epsilon: added to the variance.
      axis_name: mapped axis (of `jax.pmap` or `jax.shard_map`) over which batch statistics are averaged.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises `x [..., c]`; with `train` by its own statistics, which also move the running ones."""
        features, dtype = x.shape[-1], x.dtype
        x = x.astype(jnp.promote_types(dtype, jnp.float32))  # statistics of half-precision activations
        scale = self.param("scale", nn.initializers.ones, (features,))
        bias = self.param("bias", nn.initializers.zeros, (features,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,))
        if train:
            axes = tuple(range(x.ndim - 1))
            mean = self._all_devices(jnp.mean(x, axes))
            var = self._all_devices(jnp.mean(jnp.square(x - mean), axes))
            if not self.is_initializing():
                count = x.size // features * (jax.lax.axis_size(self.axis_name) if self.axis_name else 1)
                keep, unbiased = self.momentum, count / max(count - 1, 1)
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_var.value = keep * running_var.value + (1 - keep) * unbiased * var
        else:
            mean, var = running_mean.value, running_var.value
        return ((x - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias).astype(dtype)

    def _all_devices(self, statistic: jax.Array) -> jax.Array:
        if self.axis_name is None or self.is_initializing():
            return statistic
        return jax.lax.pmean(statistic, self.axis_name)


class SqueezeExcitation(nn.Module):
    """Gates channels by what all positions together say (arXiv 1709.01507).

    Attributes:
      squeezed: channels between the two 1x1 convolutions.
      activation: after the first.
      gate: after the second.
    """

    squeezed: int
    activation: Callable[[jax.Array], jax.Array]
    gate: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps activations `[n, h, w, c]` to the same shape."""
        out = jnp.mean(x, axis=(1, 2), keepdims=True)
        out = self.activation(nn.Conv(self.squeezed, (1, 1), kernel_init=torch_uniform, name="fc1")(out))
        return x * self.gate(nn.Conv(x.shape[-1], (1, 1), kernel_init=torch_uniform, name="fc2")(out))


def max_pool(x: jax.Array, window: int, stride: int, padding: int = 0) -> jax.Array:
    """Maximum over square windows of `x [n, h, w, c]`; what is padded never wins, as in `torch.nn.MaxPool2d`."""
    return nn.max_pool(x, (window, window), (stride, stride), [(padding, padding)] * 2)


def residual_stages(
    x: jax.Array, block: Callable[..., nn.Module], *, depth: Sequence[int], width: int, train: bool
) -> jax.Array:
    """The stages of a ResNet, called in its module: each but the first halves the resolution and doubles the channels.

    Args:
      x: activations `[n, h, w, c]`.
      block: `(features, stride, name=...) -> module`, called as `module(x, train=train)`.
      depth: blocks per stage.
      width: features of the first stage.
      train: training mode.
    """
    for stage, blocks in enumerate(depth):
        for i in range(blocks):
            stride = 2 if stage > 0 and i == 0 else 1
            module: Callable[..., jax.Array] = block(width * 2**stage, stride, name=f"layer{stage + 1}.{i}")
            x = module(x, train=train)
    return x


def global_avg_pool(x: jax.Array) -> jax.Array:
    """Mean over all positions, `[n, h, w, c]` -> `[n, c]`; raises InputError if no position is left."""
    _check_positions(x)
    return jnp.mean(x, axis=(1, 2))


def adaptive_avg_pool(x: jax.Array, size: int) -> jax.Array:
    """Averages `x [n, h, w, c]` to `[n, size, size, c]`, from any h and w, as `torch.nn.AdaptiveAvgPool2d` does.

    Row i of the output averages rows `floor(i h / size)` up to `ceil((i + 1) h / size)` of the input; small inputs
    thus repeat rows, and inputs of this size stay as they are.

    Raises:
      InputError: if h or w is 0.
    """
    _check_positions(x)
    for axis in (1, 2):
        if x.shape[axis] != size:
            matrix = jnp.asarray(_pooling_matrix(x.shape[axis], size), x.dtype)
            pooled = jnp.tensordot(x, matrix, axes=(axis, 0), precision=jax.lax.Precision.HIGHEST)
            x = jnp.moveaxis(pooled, -1, axis)
    return x


def _pooling_matrix(inputs: int, outputs: int) -> np.ndarray:
    """`[inputs, outputs]`; column i averages the inputs of window i."""
    matrix = np.zeros((inputs, outputs))
    for i in range(outputs):
        start, end = i * inputs // outputs, -((i + 1) * inputs // -outputs)
        matrix[start:end, i] = 1 / (end - start)
    return matrix


def _check_positions(x: jax.Array) -> None:
    if 0 in x.shape[1:3]:
        raise InputError(
            "model.image_shape: expected images large enough for the network's strides, "
            f"found that {x.shape[1]} x {x.shape[2]} positions are left to average"
        )
