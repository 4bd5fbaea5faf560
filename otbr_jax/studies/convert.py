"""Converts checkpoints from one format into another."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from otbr_jax.errors import InputError
from otbr_jax.interop.matching import tensors_like
from otbr_jax.interop.state_dict import to_state_dict
from otbr_jax.interop.tensor_files import FORMATS, is_tensor_folder, read_tensors, write_state_dict
from otbr_jax.models import registry
from otbr_jax.models.registry import ModelConfig
from otbr_jax.paths import local_path
from otbr_jax.runs.checkpoints import replace_checkpoint
from otbr_jax.runs.infer_model import infer_model, likely_sizes
from otbr_jax.runs.loading import load_checkpoint, load_file
from otbr_jax.types import named_leaves


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    model: str,
    settings: Mapping[str, Any],
    *,
    entry: str = "",
    overwrite: bool = False,
) -> str:
    """Converts a network's checkpoint into the format that the target's suffix names; returns one line about it.

    From file to file, names, order and dtypes stay; what surrounds the state dict is dropped. An Orbax checkpoint is
    float32 and has this project's names. Back in a file, the names are PyTorch's, and BatchNorm's counters of batches
    are 0.

    Args:
      source: an Orbax checkpoint directory, or a file of PyTorch or safetensors.
      target: a name with a suffix of `FORMATS`, or one without a suffix for an Orbax checkpoint.
      model: a name of `ARCHITECTURES`.
      settings: fields of `ModelConfig`; for a file, those left out are inferred from its tensors.
      entry: see `load_tensors`.
      overwrite: whether to replace a checkpoint at the target.

    Raises:
      InputError: if the model is unknown, the source cannot be read or is not that model, or the target cannot be
        written or is in the way.
    """
    if not os.fspath(target):
        raise InputError("--to: expected a name, found an empty one")
    root, goal = local_path(source, name="--from"), local_path(target, name="--to")
    try:
        if goal.exists() and goal.samefile(root):
            raise InputError(f"--to: expected another path than --from, found {goal} for both")
        _check_target(goal, overwrite=overwrite)
    except OSError as error:
        raise InputError(f"--to: cannot use {goal} ({error.strerror})") from None
    published = ModelConfig(model)
    _network_arrays(published, settings)  # an unknown name or size ends here
    if root.is_file() or (root.is_dir() and is_tensor_folder(root)):
        file = read_tensors(root, name="--from")
        depth = tuple(settings.get("depth", ()))
        guess = infer_model(file.sets, names=(model,), depth=depth)
        guess = guess or likely_sizes(file.sets, name=model, depth=depth)
        variables, template = load_file(file, _network_arrays(guess or published, settings), name="--from", entry=entry)
        if template.normalisation is not None and goal.suffix not in FORMATS:
            mean, std = template.normalisation
            raise InputError(
                f"--to: an Orbax checkpoint cannot hold the input normalisation of {file.path}, mean {mean} and std "
                f"{std}; expected a name with one of the suffixes {', '.join(sorted(FORMATS))}, found {goal}"
            )
        tensors, origin = tensors_like(template, variables, name="--from"), file.format
    else:
        variables, _ = load_checkpoint(root, _network_arrays(published, settings), name="--from")
        tensors, origin = to_state_dict(variables), "Orbax"
    try:
        goal.parent.mkdir(parents=True, exist_ok=True)
        if goal.suffix in FORMATS:
            write_state_dict(goal, tensors, name="--to")
            count, form = len(tensors), FORMATS[goal.suffix]
        else:
            replace_checkpoint(goal, variables)
            count, form = len(named_leaves(variables)), "Orbax"
    except OSError as error:
        raise InputError(f"--to: cannot write {goal} ({error.strerror})") from None
    return f"read {root} ({origin}, {model}); wrote {count} tensors to {goal} ({form})"


def _network_arrays(config: ModelConfig, settings: Mapping[str, Any]) -> Any:
    try:
        return jax.eval_shape(registry.build(dataclasses.replace(config, **settings))[1], jax.random.key(0))
    except InputError as error:
        raise InputError(str(error).replace("model.name:", "--model:").replace("model.", "--")) from None


def _check_target(goal: pathlib.Path, *, overwrite: bool) -> None:
    """Raises InputError if the target exists and may not be replaced."""
    file = goal.suffix in FORMATS
    if not file and goal.suffix[1:].isalpha():
        known = ", ".join(sorted(FORMATS))
        raise InputError(f"--to: expected a name that ends in one of {known}, or has no suffix (Orbax), found {goal}")
    if not goal.exists():
        return
    if file and not goal.is_file():
        raise InputError(f"--to: expected a file to write, found a directory at {goal}")
    if not file and not (goal / "_METADATA").is_file():
        raise InputError(f"--to: expected an Orbax checkpoint to replace, found something else at {goal}")
    if not overwrite:
        raise InputError(f"--to: {goal} exists already; --overwrite replaces it")
