"""A session opens what runs need: the network and its origin, the data, the devices, a working directory."""

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
    """The network, the data and the devices of runs; see `open_session`.

    Attributes:
      source: the network as it came in, and how to write it in the same format.
      data: which images there are, and their preprocessing.
      mesh: the devices.
    """

    source: Source
    data: DataConfig
    mesh: Mesh

    @functools.cached_property
    def network(self) -> Network:
        """The network, with the preprocessing of the data."""
        return dataclasses.replace(self.source.network, prepare=partial(sources.preprocess, config=self.data))

    @functools.cached_property
    def dataset(self) -> Dataset | None:
        """The images, read at the first access; raises InputError as `sources.load`."""
        network = self.source.network
        return sources.load(self.data, image_shape=network.image_shape, num_classes=network.num_classes)

    def clean(self, config: CleanConfig, *, seed: int) -> Clean:
        """The defender's clean images; raises InputError as `load_clean`."""
        shape, classes = self.source.network.image_shape, self.source.network.num_classes
        dataset = None if config.name else self.dataset  # not needed if the clean images are the user's own
        return load_clean(config, dataset, image_shape=shape, num_classes=classes, seed=seed)

    @property
    def about(self) -> dict[str, Any]:
        """The settings that a working directory belongs to; all others may change from run to run.

        A user's network may be measured later, on images that did not exist at first.
        """
        config = self.source.config
        model = dataclasses.asdict(config)
        if not config.entry:  # directories that are older than this setting do not have it
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
    """The session of an open network; raises InputError if it has fewer than two classes, or the devices are wrong."""
    check_classes(source.network)
    return Session(source, data, batch_mesh(devices))
