"""Networks by name: one line per architecture, so that a new one is added in one place."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from otbr_jax.errors import InputError
from otbr_jax.models.preact_resnet import PreActResNet
from otbr_jax.types import Network, Variables, split

ARCHITECTURES: Mapping[str, Callable[..., nn.Module]] = {
    "preact_resnet18": partial(PreActResNet, stage_sizes=(2, 2, 2, 2)),
    "preact_resnet10": partial(PreActResNet, stage_sizes=(1, 1, 1, 1)),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which network: a name of `ARCHITECTURES`, its width, its input and its output.

    Attributes:
      name: a name of `ARCHITECTURES`.
      width: channels of the first stage.
      image_shape: `(h, w, c)` of one input image.
      num_classes: number of logits.
      checkpoint: directory of an Orbax checkpoint of its variables; empty for a network without weights yet.
    """

    name: str = "preact_resnet18"
    width: int = 64
    image_shape: tuple[int, int, int] = (32, 32, 3)
    num_classes: int = 10
    checkpoint: str = ""


def network_from_flax(module: nn.Module, *, image_shape: tuple[int, int, int], num_classes: int) -> Network:
    """Wraps a Linen module called as `module(images, train=bool)` as a `Network`."""

    def apply(variables: Variables, images: jax.Array) -> jax.Array:
        logits: Any = module.apply(variables, images, train=False)
        return logits

    def apply_train(variables: Variables, images: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        state = list(split(variables)[1])
        logits_and_state: Any = module.apply(variables, images, train=True, mutable=state)
        return logits_and_state

    return Network(apply=apply, apply_train=apply_train, image_shape=image_shape, num_classes=num_classes)


def build(config: ModelConfig, *, axis_name: str | None = None) -> tuple[Network, Callable[[jax.Array], Variables]]:
    """Returns the network that `config` names and its `init(key) -> variables`.

    Raises:
      InputError: if the name is not in `ARCHITECTURES`, or a size is not positive.
    """
    if config.name not in ARCHITECTURES:
        near = difflib.get_close_matches(config.name, ARCHITECTURES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"model.name: expected one of {sorted(ARCHITECTURES)}, found {config.name!r}{hint}")
    if len(config.image_shape) != 3 or min(config.image_shape) < 1:
        raise InputError(f"model.image_shape: expected (height, width, channels), found {config.image_shape}")
    for field in ("width", "num_classes"):
        if getattr(config, field) < 1:
            raise InputError(f"model.{field}: expected at least 1, found {getattr(config, field)}")
    module = ARCHITECTURES[config.name](num_classes=config.num_classes, width=config.width, axis_name=axis_name)
    shape = (int(config.image_shape[0]), int(config.image_shape[1]), int(config.image_shape[2]))
    network = network_from_flax(module, image_shape=shape, num_classes=config.num_classes)

    def init(key: jax.Array) -> Variables:
        return module.init(key, jnp.zeros((1, *shape), jnp.float32), train=True)

    return network, init
