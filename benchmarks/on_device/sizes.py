"""How large everything is: in full, or reduced, which only shows that each part runs to its end."""

import dataclasses
import pathlib

from configs import disarm
from configs.bench import paper
from configs.recipes import training
from otbr_jax.contrib.otbr_plus import SweepConfig
from otbr_jax.detectors.trigger_size import DetectionConfig, ImagesConfig
from otbr_jax.inversion import InversionConfig
from otbr_jax.models.registry import ModelConfig
from otbr_jax.settings import change, from_dict
from otbr_jax.steps.margin import MarginConfig
from otbr_jax.steps.unlearn import UnlearningConfig
from otbr_jax.steps.unlearn_triggers import TriggerUnlearningConfig
from otbr_jax.studies.bench import Bench
from otbr_jax.studies.repair_config import RepairConfig, repaired_by

TINY = {
    "images": ImagesConfig(made=60, images=40),
    "inversion": InversionConfig(steps=2, images=8, starts=4, finalists=2),
    "margin": MarginConfig(steps=2, images=2),
    "unlearning": TriggerUnlearningConfig(
        rounds=1, triggers=2, inversion=InversionConfig(steps=2, images=8, starts=4), steps=2
    ),
    "detection": DetectionConfig(families=("patch",)),
}
"""The default repair, as short as it can be."""
MIRROR = "CIFAR-10 (reconstructed, 99.85 % lossless)"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
      npz: CIFAR-10 as `data.unpack` writes it.
      reduced: whether everything is tiny.
      model: the network.
      images: how many images a timed epoch of training has.
      batches: images per step of training.
      unlearning: steps and batch of random unlearning.
      sweep: the grid.
      repeats: how often each program is timed.
      backend: of `torch.compile`; the reduced one needs no compiler of C++.
    """

    npz: pathlib.Path
    reduced: bool = False
    model: ModelConfig = ModelConfig("preact_resnet18", image_shape=(32, 32, 3))
    images: int = 50_000
    batches: tuple[int, ...] = (128, 512, 2048)
    unlearning: UnlearningConfig = UnlearningConfig()
    sweep: SweepConfig = SweepConfig(screening_images=1000)
    repeats: int = 7
    backend: str = "inductor"

    @property
    def network(self) -> str:
        """The network in words."""
        return f"{self.model.name}-w{self.model.width or 64}"


def sizes(npz: pathlib.Path, *, reduced: bool) -> Sizes:
    """The full sizes, or the reduced ones."""
    if not reduced:
        return Sizes(npz)
    return Sizes(
        npz,
        reduced=True,
        model=ModelConfig("preact_resnet18", width=4, depth=(1, 1, 1, 1), image_shape=(32, 32, 3)),
        images=64,
        batches=(32,),
        unlearning=UnlearningConfig(steps=2, batch_size=16),
        sweep=SweepConfig(gamma=(0.1, 0.2), lam=(0.5, 1.0), screening_images=20),
        repeats=1,
        backend="eager",
    )


def bench(of: Sizes) -> Bench:
    """The CIFAR-10 cells of `configs/bench/paper.py`, their images read from the .npz file."""
    cells = []
    for cell in paper.get_grid().cells:
        if cell.config.victim.data.name != "cifar10":
            continue
        data = dataclasses.replace(cell.config.victim.data, name="npz", path=str(of.npz), note=MIRROR)
        config = change(cell.config, data=data)
        if of.reduced:
            few = dataclasses.replace(data, train_images=200, test_images=100)
            short = training("cifar10", "fast", epochs=1)
            own = dataclasses.replace(config.method.otbr, unlearning=of.unlearning)
            config = change(config, data=few, model=of.model, training=short, otbr=own, sweep=of.sweep)
        cells.append(dataclasses.replace(cell, config=config))
    return Bench("paper_npz", tuple(cells[:2] if of.reduced else cells))


def victim(of: Sizes):
    """The cell of the network that repairs are timed on: BadNets on CIFAR-10. Returns a `Cell`."""
    return next(cell for cell in bench(of).cells if cell.config.victim.attack.name == "badnets")


def defaults(of: Sizes) -> dict:
    """The settings of the default repair, on digits as `launch.repair` has it and on the CIFAR-10 victim, by name."""
    digits = from_dict(RepairConfig, disarm.get_config().to_dict())
    cifar10 = repaired_by("disarm", victim(of).config)
    configs = {"digits": digits, "cifar10": cifar10}
    if not of.reduced:
        return configs
    small = dataclasses.replace(digits.victim.model, width=4)
    training = dataclasses.replace(digits.victim.training, epochs=1)
    configs["digits"] = change(digits, model=small, training=training)
    return {name: change(config, **TINY) for name, config in configs.items()}
