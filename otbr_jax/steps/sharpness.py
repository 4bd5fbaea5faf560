"""Adaptive sharpness-aware minimisation: descent by the gradient at the worst nearby network (ASAM, arXiv 2102.11600).

In a training loop of one's own it goes in front of any optax optimiser, as `finetune.activeness_aware` does:

    optimizer = optax.chain(sharpness_aware(rho=2.0), optax.sgd(0.01, momentum=0.9))
    updates, state = optimizer.update(grads, state, params, grad_fn=grad_fn)
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from otbr_jax.errors import InputError
from otbr_jax.steps.finetune import FinetuningConfig, sgd_of


def perturbation(params: Any, gradients: Any, *, rho: float) -> Any:
    """The perturbation that raises the loss most: `rho T^2 g / ||T g||` with `T = |w|`, over all parameters together.

    Each change is proportional to the parameter, and a zero stays. `||eps / |w| || = rho` over the others.

    Args:
      params: all parameters w; scales and biases as well as kernels.
      gradients: g, those of a loss.
      rho: size of the perturbation, above 0, relative to the parameters.

    Returns:
      A pytree like `params`; zero where all gradients are.
    """
    # Scaled first: squares of small gradients leave float32.
    sizes = [jnp.max(jnp.abs(w * g)) for w, g in zip(*map(jax.tree.leaves, (params, gradients)), strict=True)]
    largest = jnp.max(jnp.stack(sizes))
    scaled = jax.tree.map(lambda w, g: jnp.abs(w) * (g / jnp.where(largest > 0, largest, 1.0)), params, gradients)
    norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(scaled)))
    factor = rho / jnp.where(norm > 0, norm, 1.0)
    return jax.tree.map(lambda w, leaf: factor * jnp.abs(w) * leaf, params, scaled)


def sharpness_aware(*, rho: float) -> optax.GradientTransformationExtraArgs:
    """Turns gradients into those at `params + perturbation(params, gradients)`. It holds no state.

    Args:
      rho: see `perturbation`.

    Returns:
      A transformation whose `update` takes `grad_fn`, `params -> gradients` on the batch that the updates are from, as
      one more keyword; `optax.chain` passes it on.

    Raises:
      InputError: if `update` is called without `params` or `grad_fn`.

    Source: FT-SAM (arXiv 2304.11823), section 3.
    """

    def init(params: Any) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None, *, grad_fn: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        if params is None or grad_fn is None:
            missing = "params" if params is None else "grad_fn"
            raise InputError(f"{missing}: sharpness_aware expected it in update(grads, state, params, grad_fn=...)")
        eps = perturbation(params, updates, rho=rho)
        return grad_fn(jax.tree.map(lambda w, change: w + change, params, eps)), state

    return optax.GradientTransformationExtraArgs(init, update)


def sharpness_optimizer(config: FinetuningConfig, steps: int, *, rho: float) -> optax.GradientTransformationExtraArgs:
    """SGD behind `sharpness_aware`; arguments as of `finetune.optimizer_of`."""
    return optax.chain(sharpness_aware(rho=rho), sgd_of(config, steps))
