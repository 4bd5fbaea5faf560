"""Networks by name: one line per architecture, so that a new one is added in one place."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from otbr_jax.errors import InputError
from otbr_jax.models.convnext import ConvNeXt
from otbr_jax.models.densenet import DenseNet
from otbr_jax.models.inverted import EfficientNet, MobileNetV2, MobileNetV3
from otbr_jax.models.preact_resnet import PreActBottleneck, PreActResNet
from otbr_jax.models.resnet import BasicBlock, Bottleneck, ResNet
from otbr_jax.models.vgg import VGG, PooledVGG, SmallVGG
from otbr_jax.models.vit import VisionTransformer
from otbr_jax.models.wide_resnet import WideResNet
from otbr_jax.settings import field, settings, wrong
from otbr_jax.types import Network, Variables, split

ARCHITECTURES: Mapping[str, partial[Any]] = {
    "preact_resnet10": partial(PreActResNet, depth=(1, 1, 1, 1)),
    "preact_resnet18": partial(PreActResNet, depth=(2, 2, 2, 2)),
    "preact_resnet34": partial(PreActResNet, depth=(3, 4, 6, 3)),
    "preact_resnet50": partial(PreActResNet, depth=(3, 4, 6, 3), block=PreActBottleneck),
    "resnet18": partial(ResNet, depth=(2, 2, 2, 2)),
    "resnet50": partial(ResNet, depth=(3, 4, 6, 3), block=Bottleneck),
    "resnet18_cifar": partial(ResNet, depth=(2, 2, 2, 2), small_images=True),
    "resnet34_cifar": partial(ResNet, depth=(3, 4, 6, 3), small_images=True),
    "resnet50_cifar": partial(ResNet, depth=(3, 4, 6, 3), block=Bottleneck, small_images=True),
    **{
        f"resnet{6 * blocks + 2}_cifar{option}": partial(
            ResNet, depth=(blocks,) * 3, width=16, block=block, small_images=True
        )
        for option, block in (("", BasicBlock), ("_padded", partial(BasicBlock, padded=True)))
        for blocks in (3, 5, 7, 9)
    },
    "wide_resnet28_10": partial(WideResNet, depth=(4, 4, 4)),
    "mobilenet_v2_cifar": partial(MobileNetV2, depth=(1, 2, 3, 4, 3, 3, 1)),
    "mobilenet_v3_large": partial(MobileNetV3, depth=(1, 2, 3, 4, 2, 3)),
    "efficientnet_b0": partial(EfficientNet, depth=(1, 2, 2, 3, 3, 4, 1)),
    "vgg7_bn": partial(PooledVGG, depth=(1, 1, 2, 2)),
    "vgg11_bn": partial(VGG, depth=(1, 1, 2, 2, 2)),
    "vgg16_bn": partial(VGG, depth=(2, 2, 3, 3, 3)),
    "vgg19_bn": partial(VGG, depth=(2, 2, 4, 4, 4)),
    **{
        f"vgg{layers}{kind}": partial(SmallVGG, depth=depth, hidden=hidden)
        for kind, hidden in (("_bn_cifar", True), ("_cifar", False))
        for layers, depth in (
            (11, (1, 1, 2, 2, 2)),
            (13, (2, 2, 2, 2, 2)),
            (16, (2, 2, 3, 3, 3)),
            (19, (2, 2, 4, 4, 4)),
        )
    },
    "densenet121": partial(DenseNet, depth=(6, 12, 24, 16)),
    "convnext_tiny": partial(ConvNeXt, depth=(3, 3, 9, 3)),
    "vit_b_16": partial(VisionTransformer, depth=(12,)),
}


@settings("model")
class ModelConfig:
    """Which network: a name of `ARCHITECTURES`, its size, its input and its output."""

    name: str = field(
        default="preact_resnet18",
        doc="a name of `ARCHITECTURES`, or the user's own network, `package.module:attribute` or `file.py:attribute`; "
        "empty for the network whose tensors a checkpoint file holds.",
    )
    width: int = field(default=0, at_least=0, doc="channels of the first stage; 0 for as many as published.")
    depth: tuple[int, ...] = field(
        default=(),
        at_least=1,
        doc="blocks per stage (of a VGG convolutions, of a DenseNet layers); empty for as many as published.",
    )
    image_shape: tuple[int, int, int] = field(default=(32, 32, 3), at_least=1, doc="`(h, w, c)` of one input image.")
    num_classes: int = field(default=10, at_least=1, doc="number of logits.")
    checkpoint: str = field(
        default="",
        doc="its weights: an Orbax checkpoint directory, or a PyTorch or safetensors file or folder; empty for none.",
    )
    entry: str = field(
        default="",
        doc="which of several sets of weights in the checkpoint, such as `state_dict_ema`; empty for the first.",
    )

    def check(self) -> None:
        """Images have their channels last."""
        height, width, channels = self.image_shape
        if height <= 4 and width == channels >= 8:
            raise wrong(
                self,
                "image_shape",
                f"(h, w, c), such as {(width, channels, height)}; a network that takes channels first is wrapped as "
                "lambda variables, images: apply(variables, images.transpose(0, 3, 1, 2))",
            )


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
      InputError: if the name is not in `ARCHITECTURES`, the number of stages differs from the published one, or the
        images do not suit the network.
    """
    if config.name not in ARCHITECTURES:
        near = difflib.get_close_matches(config.name, ARCHITECTURES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"model.name: expected one of {sorted(ARCHITECTURES)}, found {config.name!r}{hint}")
    architecture = ARCHITECTURES[config.name]
    published = architecture.keywords["depth"]
    depth = config.depth or published
    if len(depth) != len(published):
        raise InputError(f"model.depth: expected a number of at least 1 for each of {published}, found {depth}")
    width = {"width": config.width} if config.width else {}
    module = architecture(num_classes=config.num_classes, depth=depth, **width, axis_name=axis_name)
    network = network_from_flax(module, image_shape=config.image_shape, num_classes=config.num_classes)

    def init(key: jax.Array) -> Variables:
        return module.init(key, jnp.zeros((1, *config.image_shape), jnp.float32), train=True)

    jax.eval_shape(init, jax.random.key(0))  # a shape that does not suit the network ends here, not in the first stage
    return network, init
