"""`conftest.Small` in PyTorch, evaluation mode, on the arrays of its JAX variables; with gradients to all of them."""

import numpy as np
import torch
from torch.nn import functional

from otbr_jax.types import named_leaves

torch.set_num_threads(1)


def to_torch(variables):
    """`{name: tensor}` of variables, parameters with gradients."""
    leaves = {name: torch.tensor(np.asarray(leaf)) for name, leaf in named_leaves(variables).items()}
    return {name: leaf.requires_grad_(name.startswith("params/")) for name, leaf in leaves.items()}


def logits(arrays, images):
    """Logits `[n, 10]` of images `[n, 8, 8, 1]`."""
    x = images.permute(0, 3, 1, 2)
    for index in (1, 2):
        kernel = arrays[f"params/conv{index}/kernel"].permute(3, 2, 0, 1)
        x = functional.conv2d(functional.pad(x, (0, 1, 0, 1)), kernel, stride=2)
        if f"params/conv{index}/bias" in arrays:
            x = x + arrays[f"params/conv{index}/bias"][:, None, None]
        mean, var = (arrays[f"batch_stats/bn{index}/{name}"] for name in ("mean", "var"))
        weight, bias = (arrays[f"params/bn{index}/{name}"] for name in ("scale", "bias"))
        x = functional.relu(functional.batch_norm(x, mean, var, weight, bias, eps=1e-5))
    return x.mean((2, 3)) @ arrays["params/linear/kernel"] + arrays["params/linear/bias"]


def compare(grads, arrays, *, rtol=1e-4, atol=1e-6):
    """That gradients of JAX, a pytree of parameters, are those that the tensors hold."""
    for name, leaf in named_leaves({"params": grads}).items():
        np.testing.assert_allclose(leaf, arrays[name].grad.numpy(), rtol=rtol, atol=atol, err_msg=name)
