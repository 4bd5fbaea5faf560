"""A network in two frameworks, and a few images: what fine-tuning in PyTorch is compared on."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from conftest import Small, small_network
from torch import nn

from otbr_jax import Batch
from otbr_jax.types import named_leaves

IMAGES, CLASSES = 16, 10


class SmallTorch(nn.Module):
    """`conftest.Small`."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 3, 3, 2, padding=0, bias=False), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 4, 3, 2, padding=0, bias=False), nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, CLASSES)

    def features(self, images):
        """What the second convolution and the classifier see."""
        first = torch.relu(self.bn1(self.conv1(nn.functional.pad(images, (0, 1, 0, 1)))))
        second = torch.relu(self.bn2(self.conv2(nn.functional.pad(first, (0, 1, 0, 1)))))
        return first, second.mean((2, 3))

    def forward(self, images):
        return self.linear(self.features(images)[1])


def to_torch(variables):
    """The same network in PyTorch."""
    model, leaves = SmallTorch(), named_leaves(variables)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name in names():
                tensor.copy_(torch.tensor(in_torch(np.asarray(leaves[names()[name]]))))
    return model


def names():
    """Names in PyTorch, and here."""
    found = {"linear.weight": "params/linear/kernel", "linear.bias": "params/linear/bias"}
    for index in (1, 2):
        found[f"conv{index}.weight"] = f"params/conv{index}/kernel"
        found |= {f"bn{index}.weight": f"params/bn{index}/scale", f"bn{index}.bias": f"params/bn{index}/bias"}
        statistics = {"running_mean": "mean", "running_var": "var"}
        found |= {f"bn{index}.{theirs}": f"batch_stats/bn{index}/{ours}" for theirs, ours in statistics.items()}
    return found


def in_torch(array):
    """A kernel as PyTorch lays it out; vectors as they are."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def assert_same(variables, model, *, atol=1e-4, only="params/"):
    """Every array that begins with `only` is the model's."""
    state, leaves = model.state_dict(), named_leaves(variables)
    for theirs, ours in names().items():
        if ours.startswith(only):
            np.testing.assert_allclose(in_torch(np.asarray(leaves[ours])), state[theirs], atol=atol, err_msg=ours)


def pair():
    """(network, variables with positive variances, the same in PyTorch)."""
    network = small_network()
    variables = Small().init(jax.random.key(2), jnp.zeros((1, 8, 8, 1)), train=False)
    keys = iter(jax.random.split(jax.random.key(3), 20))
    variables = jax.tree.map(lambda x: x + 0.2 * jax.random.uniform(next(keys), x.shape), variables)
    return network, variables, to_torch(variables)


def few_images():
    """(Batch, the images and labels in PyTorch)."""
    random = np.random.default_rng(5)
    images = random.random((IMAGES, 8, 8, 1), np.float32)
    labels = random.integers(0, CLASSES, IMAGES).astype(np.int32)
    theirs = torch.tensor(images.transpose(0, 3, 1, 2)), torch.tensor(labels, dtype=torch.long)
    return Batch(jnp.asarray(images), jnp.asarray(labels)), theirs
