"""What runs are opened with: the network and where it came from, the data, the devices, a working directory."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from otbr_jax.data import sources
from otbr_jax.data.clean import Clean, CleanConfig, load_clean
from otbr_jax.data.sources import DataConfig, Dataset
from otbr_jax.interop.tensor_files import TensorFile
from otbr_jax.models.registry import ModelConfig
from otbr_jax.paths import local_path
from otbr_jax.runs.devices import batch_mesh
from otbr_jax.runs.networks import Source, check_classes, open_network
from otbr_jax.runs.store import Workdir, open_workdir
from otbr_jax.types import Network


@dataclasses.dataclass(frozen=True)
class Session:
    """What runs are opened with; see `open_session`.

    Attributes:
      source: the network as it came, and how it goes back.
      data: which images there are, and how they are prepared.
      mesh: the devices.
    """

    source: Source
    data: DataConfig
    mesh: Mesh

    @functools.cached_property
    def network(self) -> Network:
        """The functions of the network, which prepares images as the data say."""
        return dataclasses.replace(self.source.network, prepare=partial(sources.preprocess, config=self.data))

    @functools.cached_property
    def dataset(self) -> Dataset | None:
        """The images, read where somebody asks for them first; raises InputError as `sources.load`."""
        network = self.source.network
        return sources.load(self.data, image_shape=network.image_shape, num_classes=network.num_classes)

    def clean(self, config: CleanConfig, *, seed: int) -> Clean:
        """The defender's clean images; raises InputError as `load_clean`."""
        shape, classes = self.source.network.image_shape, self.source.network.num_classes
        dataset = None if config.name else self.dataset  # which nobody needs for images of their own
        return load_clean(config, dataset, image_shape=shape, num_classes=classes, seed=seed)

    @property
    def about(self) -> dict[str, Any]:
        """What a working directory is about; the rest of the settings may change from run to run.

        A network that was brought may be measured later, on images that were not there at first.
        """
        config = self.source.config
        model = dataclasses.asdict(config)
        if not config.entry:  # as directories from before there was this setting have it
            del model["entry"]
        if config.checkpoint:
            model["checkpoint"] = str(local_path(config.checkpoint, name="model.checkpoint"))
        return {"model": model} if config.checkpoint else {"model": model, "data": self.data.name}

    def directory(self, path: str | os.PathLike[str], *, shared: bool = False) -> AbstractContextManager[Workdir]:
        """The working directory of that path, opened for this network; raises InputError as `open_workdir`."""
        return open_workdir(path, subject=self.about, shared=shared)


def open_session(
    model: ModelConfig,
    data: DataConfig,
    *,
    devices: Sequence[jax.Device] | None = None,
    checkpoint: TensorFile | pathlib.Path | None = None,
) -> Session:
    """Opens a network, whose file is read once; nothing is written.

    Args:
      model: the network; without a name the checkpoint says which.
      data: the images.
      devices: the devices that share the work; by default all local ones.
      checkpoint: the checkpoint, if it has been read already.

    Raises:
      InputError: names what is wrong with the settings, the devices or the checkpoint.
    """
    return session_of(open_network(model, checkpoint), data, devices=devices)


def session_of(source: Source, data: DataConfig, *, devices: Sequence[jax.Device] | None = None) -> Session:
    """The session of a network that is open already; raises InputError if it has no two classes, or by the devices."""
    check_classes(source.network)
    return Session(source, data, batch_mesh(devices))
