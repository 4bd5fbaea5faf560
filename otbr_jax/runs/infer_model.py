"""Infers from a file's tensors which network of the registry it holds: for settings left out, and for errors."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Iterable, Mapping

import jax

from otbr_jax.errors import InputError
from otbr_jax.interop.locating import Shapes, hold_all, known_shapes, locate, names_by_spelling, same_shape
from otbr_jax.interop.state_dict import tensor_name, tensor_shape
from otbr_jax.interop.tensor_files import TensorFile
from otbr_jax.interop.torch_files import Path, TensorSet
from otbr_jax.models import registry
from otbr_jax.models.registry import ModelConfig
from otbr_jax.models.vit import PATCH
from otbr_jax.paths import local_path
from otbr_jax.types import named_leaves

# Sizes that no network has by default, so that the probe shows which axes they set.
_PROBE = ModelConfig(width=64, image_shape=(32, 32, 11), num_classes=997)
_POSITIONS = "encoder.pos_embedding"


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """PyTorch's names and shapes of all weights and statistics of the network that `config` names.

    Raises:
      InputError: as `registry.build`.
    """
    _, init = registry.build(config)
    leaves = named_leaves(jax.eval_shape(init, jax.random.key(0)))
    return {tensor_name(leaf): tensor_shape(leaf, spec.shape) for leaf, spec in leaves.items()}


def infer_settings(model: ModelConfig, checkpoint: TensorFile | pathlib.Path | None) -> ModelConfig:
    """The settings of the network in a checkpoint; settings that no tensor shows keep their values.

    Args:
      model: the settings that are known.
      checkpoint: what `read_checkpoint` returned; None without one.

    Raises:
      InputError: if there is no checkpoint, it is no file of tensors, or of no network of the registry of that `depth`;
        or `model` has another `width` or `num_classes` than the network, and it is not the default.
    """
    if checkpoint is None:
        raise InputError("model.checkpoint: expected a file to infer the network from, or a model.name, found neither")
    if isinstance(checkpoint, pathlib.Path):
        raise InputError(
            f"model.name: expected a name, which an Orbax checkpoint does not hold, found none beside {checkpoint}"
        )
    stages, place = len(model.depth), local_path(model.checkpoint, name="model.checkpoint")
    names = [name for name, build in registry.ARCHITECTURES.items() if stages in (0, len(build.keywords["depth"]))]
    inferred = infer_model(checkpoint.sets, names=names, depth=model.depth)
    if inferred is None:
        at = f" at model.depth={model.depth}" if model.depth else ""
        raise InputError(
            f"model.name: expected a name, since the tensors of {place} are those of no network that is known here{at},"
            " found none; docs/bring.md lists them, and says how to bring another"
        )
    default = ModelConfig()
    for name in ("width", "num_classes"):
        value, own = getattr(model, name), getattr(inferred, name)
        if value not in (getattr(default, name), own):
            raise InputError(f"model.{name}: expected {own}, that of the network in {place}, found {value}")
    has_sides = inferred.image_shape[:2] != default.image_shape[:2]  # from a ViT's positions
    sides = inferred.image_shape[:2] if has_sides else model.image_shape[:2]
    published = dataclasses.replace(inferred, width=0)
    return dataclasses.replace(
        published if expected_shapes(published) == expected_shapes(inferred) else inferred,
        image_shape=(*sides, inferred.image_shape[2]),
        checkpoint=model.checkpoint,
        entry=model.entry,
    )


def infer_model(
    sets: Mapping[Path, TensorSet],
    *,
    names: Iterable[str] = tuple(registry.ARCHITECTURES),
    depth: tuple[int, ...] = (),
) -> ModelConfig | None:
    """Returns the network whose names and shapes are exactly those of a file, under any prefix; None if there is none.

    Args:
      sets: the file's tensors by where they lie.
      names: architectures to try.
      depth: see `ModelConfig`; other depths than this (by default the published ones) are not tried.
    """
    held = names_by_spelling(sets)
    for name in names:
        probe = _probe(name, depth)
        if not any(hold_all(each, probe) for each in held):  # looking closely takes long
            continue
        shapes = _best(sets, probe)
        if probe.keys() == shapes.keys():
            config = _sizes(probe, shapes, name=name, depth=depth)
            if config is not None and _fits(config, shapes):
                return config
    return None


def likely_sizes(sets: Mapping[Path, TensorSet], *, name: str, depth: tuple[int, ...] = ()) -> ModelConfig | None:
    """The sizes of a network of which a file holds most tensors, with some missing or extra; None if it holds fewer.

    With these sizes an error names the missing or extra tensor, not all tensors with other shapes than published.
    """
    probe = _probe(name, depth)
    shapes = _best(sets, probe)
    if 2 * len(probe.keys() & shapes.keys()) < len(probe):
        return None
    try:
        config = _sizes(probe, shapes, name=name, depth=depth)
        if config is not None:
            expected_shapes(config)
        return config
    except (KeyError, InputError):  # the tensors that show the sizes are missing, or there is no such network
        return None


def _best(sets: Mapping[Path, TensorSet], probe: Shapes) -> dict[str, tuple[int, ...]]:
    """The shapes, by the network's names, of the set that holds most of them."""
    places = locate(sets, probe)
    return known_shapes(max(places, key=lambda place: (len(place.names), -len(place.extra)))) if places else {}


def describe(config: ModelConfig) -> str:
    """One clause for an error line: `preact_resnet18 with model.width=16, model.num_classes=10`."""
    settings: dict[str, object] = {"width": config.width, "num_classes": config.num_classes}
    if config.image_shape != ModelConfig().image_shape:
        settings["image_shape"] = config.image_shape
    return f"{config.name} with {', '.join(f'model.{key}={value}' for key, value in settings.items())}"


@functools.cache
def _probe(name: str, depth: tuple[int, ...]) -> Shapes:
    return expected_shapes(dataclasses.replace(_PROBE, name=name, depth=depth))


def _sizes(probe: Shapes, shapes: Shapes, *, name: str, depth: tuple[int, ...]) -> ModelConfig | None:
    """The sizes of a network from the axes where the probe has its own; None if there is no such network."""
    first = next(key for key, shape in probe.items() if len(shape) == 4 and shape[1] == _PROBE.image_shape[2])
    wide = next((key for key, shape in probe.items() if len(shape) == 4 and shape[0] == _PROBE.width), first)
    head = next(key for key, shape in probe.items() if shape == (_PROBE.num_classes,))
    if len(shapes[first]) != 4 or len(shapes[wide]) != 4 or len(shapes[head]) != 1:
        return None
    side = ModelConfig().image_shape[0]
    if _POSITIONS in shapes and len(shapes[_POSITIONS]) == 3:
        side = PATCH * math.isqrt(max(0, shapes[_POSITIONS][1] - 1))
    width = shapes[wide][0] * _PROBE.width // probe[wide][0]
    return ModelConfig(name, width, depth, (side, side, shapes[first][1]), shapes[head][0])


def _fits(config: ModelConfig, shapes: Shapes) -> bool:
    try:
        expected = expected_shapes(config) if config.width > 0 else {}
    except InputError:  # sizes that the network does not come in
        return False
    return expected.keys() == shapes.keys() and all(same_shape(shapes[name], expected[name]) for name in expected)
