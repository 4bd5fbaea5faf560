"""Layers that follow PyTorch's semantics, so that checkpoints mean the same on both sides."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

# PyTorch's default for convolutions and dense layers: uniform in +-1/sqrt(fan_in).
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


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
        features = x.shape[-1]
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
        return (x - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias

    def _all_devices(self, statistic: jax.Array) -> jax.Array:
        if self.axis_name is None or self.is_initializing():
            return statistic
        return jax.lax.pmean(statistic, self.axis_name)
