"""Files of reference numbers: a network, and the results of another implementation of a method.

An .npz whose `meta` is JSON; tensors carry PyTorch's names and layouts under a prefix such as `victim/`. Nothing in it
is random: noise, labels and batches are stored.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from otbr_jax.errors import InputError
from otbr_jax.interop.state_dict import from_state_dict, tensor_name, tensor_shape, to_state_dict
from otbr_jax.models import registry
from otbr_jax.models.registry import ModelConfig
from otbr_jax.paths import REFERENCE, existing
from otbr_jax.types import Batch, Network, Variables, named_leaves

ARCHITECTURES = {"preact": "preact_resnet18", "vgg": "vgg7_bn"}
"""What `meta` calls networks -> their names in the registry, which it may use as well."""


class Reference(NamedTuple):
    """A file of reference numbers, and its network.

    Attributes:
      meta: sizes and settings.
      arrays: everything else, by the file's names.
      network: the functions of the network.
      like: its variables as `jax.ShapeDtypeStruct`.
      names: `{this project's PyTorch name: the file's name}` of the network's tensors.
    """

    meta: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    network: Network
    like: Variables
    names: Mapping[str, str]

    def array(self, name: str) -> np.ndarray:
        """One array; raises InputError that names it if the file lacks it."""
        if name not in self.arrays:
            raise InputError(f"--reference: expected an array {name!r} in the file, found none")
        return self.arrays[name]

    def setting(self, *path: str) -> Any:
        """One value of `meta`, such as `setting("otbr", "lr")`; raises InputError that names it if it is missing."""
        value: Any = self.meta
        for name in path:
            if not isinstance(value, Mapping) or name not in value:
                raise InputError(f"--reference: expected meta to hold {'.'.join(path)!r}, found none")
            value = value[name]
        return value

    def variables(self, prefix: str) -> Variables:
        """The variables stored under a prefix, such as `victim`; biases that the file's network lacks are zero."""
        tensors = {}
        for leaf, spec in named_leaves(self.like).items():
            name = tensor_name(leaf)
            if name in self.names:
                tensors[name] = self.array(f"{prefix}/{self.names[name]}")
            else:
                tensors[name] = np.zeros(tensor_shape(leaf, spec.shape), np.float32)
        return jax.tree.map(jnp.asarray, from_state_dict(tensors, self.like))

    def tensors(self, variables: Variables) -> dict[str, np.ndarray]:
        """Variables by the file's names and in its layouts, without what the file's network lacks."""
        state = to_state_dict(variables)
        return {stored: state[name] for name, stored in self.names.items()}

    def batches(self, images: str, labels: str) -> Batch:
        """Stored batches: images `[steps, n, h, w, c]` float32, labels `[steps, n]` int32."""
        stack = self.array(images).astype(np.float32).transpose(0, 1, 3, 4, 2)
        return Batch(jnp.asarray(stack), jnp.asarray(self.array(labels).astype(np.int32)))

    def logits(self, variables: Variables) -> np.ndarray:
        """Logits `[n, classes]` of the stored probe images, evaluation mode."""
        images = jnp.asarray(self.array("probe/images").transpose(0, 2, 3, 1))
        return np.asarray(jax.jit(self.network.apply)(variables, images))


def load_reference(path: str | os.PathLike[str]) -> Reference:
    """Reads a file of reference numbers and builds the network that its `meta` names.

    Raises:
      InputError: names the file and what is wrong with it.
    """
    file = existing(path, name="--reference", expected=REFERENCE, is_there=pathlib.Path.is_file)
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        meta = json.loads(str(arrays.pop("meta")))
        victim = {name.removeprefix("victim/"): array for name, array in arrays.items() if name.startswith("victim/")}
        config = _model_config(meta, arrays, victim)
    except (KeyError, ValueError, TypeError, IndexError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"--reference: expected an .npz file of reference numbers, found {file} ({type(error).__name__}: {error})"
        ) from None
    network, init = registry.build(config)
    like = jax.eval_shape(init, jax.random.key(0))
    return Reference(meta, arrays, network, like, _match(like, victim))


def _model_config(
    meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray], victim: Mapping[str, np.ndarray]
) -> ModelConfig:
    _, channels, height, width = arrays["probe/images"].shape
    name = ARCHITECTURES.get(meta["arch"], meta["arch"])
    blocks = [re.match(r"layer(\d+)\.(\d+)\.", tensor) for tensor in victim]
    depth = tuple(
        1 + max(int(block[2]) for block in blocks if block and int(block[1]) == stage)
        for stage in sorted({int(block[1]) for block in blocks if block})
    )
    return ModelConfig(name, meta["width"], depth, (height, width, channels), meta["classes"])


def _match(like: Variables, victim: Mapping[str, np.ndarray]) -> dict[str, str]:
    """`{our name: the file's}` by name; failing that, the n-th convolution, BatchNorm and dense layer of both."""
    leaves = {tensor_name(leaf): tensor_shape(leaf, spec.shape) for leaf, spec in named_leaves(like).items()}
    stored = {name: array.shape for name, array in victim.items() if not name.endswith("num_batches_tracked")}
    if leaves.keys() == stored.keys():
        names = {name: name for name in leaves}
    else:
        ours, theirs = _modules(leaves), _modules(stored)
        if {kind: len(modules) for kind, modules in ours.items()} != {kind: len(m) for kind, m in theirs.items()}:
            raise InputError(
                f"--reference: expected {_counts(ours)} in the file, as the network that meta names; "
                f"found {_counts(theirs)}"
            )
        names = {
            f"{own}.{part}": f"{other}.{part}"
            for kind, modules in ours.items()
            for own, other in zip(modules, theirs[kind], strict=True)
            for part in ("weight", "bias", "running_mean", "running_var")
            if f"{other}.{part}" in stored
        }
    for name, other in names.items():
        if leaves.get(name) != stored[other]:
            raise InputError(f"--reference: expected victim/{other} of shape {leaves.get(name)}, found {stored[other]}")
    return names


def _modules(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[str]]:
    """Names of the convolutions, dense layers and BatchNorms, in the natural order of their names."""
    modules: dict[str, list[str]] = {"convolutions": [], "dense layers": [], "BatchNorms": []}
    for name in sorted(shapes, key=lambda name: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", name)]):
        module, _, part = name.rpartition(".")
        if part == "weight":
            kind = {4: "convolutions", 2: "dense layers", 1: "BatchNorms"}[len(shapes[name])]
            modules[kind].append(module)
    return modules


def _counts(modules: Mapping[str, list[str]]) -> str:
    return ", ".join(f"{len(names)} {kind}" for kind, names in modules.items())
