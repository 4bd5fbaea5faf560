"""Training recipes of victims, published and fast; image shapes and classes of data sets.

Published (BackdoorBench, which both papers build on): SGD 0.01, momentum 0.9, weight decay 5e-4, batches of 128, a
cosine schedule, 100 epochs on CIFAR-10, 50 on GTSRB, 200 on Tiny ImageNet. Fast: ten times the learning rate after a
warm-up, and a seventh of the epochs.
"""

import dataclasses

import ml_collections

from otbr_jax.attacks.registry import ATTACKS, AttackConfig
from otbr_jax.data.sources import DataConfig
from otbr_jax.errors import InputError
from otbr_jax.models.registry import ModelConfig
from otbr_jax.victims.config import VictimConfig
from otbr_jax.victims.training import TrainingConfig

DATA = {
    "cifar10": DataConfig("cifar10", mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.243, 0.261)),
    "gtsrb": DataConfig("gtsrb"),
    "tiny_imagenet": DataConfig("tiny_imagenet", mean=(0.4802, 0.4481, 0.3975), std=(0.2302, 0.2265, 0.2262)),
    "mnist": DataConfig("mnist", mean=(0.5,), std=(0.5,)),
    "digits": DataConfig("digits"),
}
SHAPES = {"cifar10": (32, 32, 3), "gtsrb": (32, 32, 3), "tiny_imagenet": (64, 64, 3), "mnist": (28, 28, 1)}
SHAPES["digits"] = (16, 16, 1)
CLASSES = {"cifar10": 10, "gtsrb": 43, "tiny_imagenet": 200, "mnist": 10, "digits": 10}
EPOCHS = {
    "published": {"cifar10": 100, "gtsrb": 50, "tiny_imagenet": 200, "mnist": 50, "digits": 100},
    "fast": {"cifar10": 15, "gtsrb": 8, "tiny_imagenet": 30, "mnist": 6, "digits": 15},
}
EIGHT = ("badnets", "blended", "sig", "lf", "ssba", "wanet", "input_aware", "trojan")
"""The attacks of the papers."""
RATES = {"published": {"learning_rate": 0.01}, "fast": {"learning_rate": 0.1, "warmup": 0.2}}


def training(data: str, recipe: str, **changes) -> TrainingConfig:
    """The training of a recipe on a data set."""
    written = data in ("mnist", "digits")  # digits fill their images, and a mirrored one is no digit
    augmentation = {"crop_padding": 0 if written else 4, "flip": data == "cifar10"}
    batch_size = 64 if data == "digits" else 128  # of 1,297 images
    return TrainingConfig(
        **{"epochs": EPOCHS[recipe][data], "batch_size": batch_size, **RATES[recipe], **augmentation, **changes}
    )


def model(data: str, name: str = "preact_resnet18", *, width: int = 0) -> ModelConfig:
    """A network for the images of a data set."""
    return ModelConfig(name, width=width, image_shape=SHAPES[data], num_classes=CLASSES[data])


def victim(data: str, argument: str, *, network: ModelConfig | None = None) -> ml_collections.ConfigDict:
    """The settings of a victim from the part of `--config` after the colon: `ATTACK` or `ATTACK,RECIPE`.

    The network is PreAct-ResNet18 unless another is given.

    Raises InputError if it names no attack or no recipe.
    """
    attack, _, recipe = argument.partition(",")
    recipe = recipe or "published"
    if attack not in (*ATTACKS, "none") or recipe not in EPOCHS:
        raise InputError(
            f"--config: expected FILE.py:ATTACK or FILE.py:ATTACK,RECIPE with an attack of {[*ATTACKS, 'none']} and a "
            f"recipe of {list(EPOCHS)}, found {argument!r}"
        )
    config = VictimConfig(
        model=network or model(data),
        data=DATA[data],
        attack=AttackConfig(name=attack),
        training=training(data, recipe),
    )
    return ml_collections.ConfigDict(dataclasses.asdict(config))
