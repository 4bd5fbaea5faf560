"""Which network of the registry a file's tensors are those of: for errors, and for settings left out."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping

import jax

from otbr_jax.errors import InputError
from otbr_jax.interop.locating import Shapes, hold_all, known_shapes, locate, names_by_spelling, same_shape
from otbr_jax.interop.state_dict import tensor_name, tensor_shape
from otbr_jax.interop.tensor_files import existing, is_tensor_folder, read_tensors
from otbr_jax.interop.torch_files import Path, TensorSet
from otbr_jax.models import registry
from otbr_jax.models.registry import ModelConfig
from otbr_jax.models.vit import PATCH
from otbr_jax.types import named_leaves

# Sizes that no network has by itself, so that the probe shows which axes they set.
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


def named(model: ModelConfig) -> ModelConfig:
    """The settings as they are, or where they name no network those that `told` finds; raises InputError as that."""
    return model if model.name else told(model)


def told(model: ModelConfig) -> ModelConfig:
    """The settings of the network whose tensors the checkpoint file holds; what no tensor tells stays as given.

    Raises:
      InputError: if there is no checkpoint, it is no file of tensors, or of no network of the registry of that `depth`;
        or its `width` or `num_classes` is another than a given one that is not the default.
    """
    if not model.checkpoint:
        raise InputError("model.checkpoint: expected a file to tell the network from, or a model.name, found neither")
    root = existing(model.checkpoint, name="model.checkpoint")
    if root.is_dir() and not is_tensor_folder(root):
        raise InputError(f"model.name: expected a name, which no Orbax checkpoint tells, found none beside {root}")
    stages = len(model.depth)
    names = [name for name, made in registry.ARCHITECTURES.items() if stages in (0, len(made.keywords["depth"]))]
    found = identify(read_tensors(model.checkpoint, name="model.checkpoint").sets, names=names, depth=model.depth)
    if found is None:
        at = f" at model.depth={model.depth}" if model.depth else ""
        raise InputError(
            f"model.name: expected a name, since the tensors of {root} are those of no network that is known here{at}, "
            "found none; docs/bring.md lists them, and says how to bring another"
        )
    usual = ModelConfig()
    for name in ("width", "num_classes"):
        given, own = getattr(model, name), getattr(found, name)
        if given not in (getattr(usual, name), own):
            raise InputError(f"model.{name}: expected {own}, that of the network in {root}, found {given}")
    told_sides = found.image_shape[:2] != usual.image_shape[:2]  # by a ViT's positions
    sides = found.image_shape[:2] if told_sides else model.image_shape[:2]
    published = dataclasses.replace(found, width=0)
    return dataclasses.replace(
        published if expected_shapes(published) == expected_shapes(found) else found,
        image_shape=(*sides, found.image_shape[2]),
        checkpoint=model.checkpoint,
        entry=model.entry,
    )


def identify(
    sets: Mapping[Path, TensorSet],
    *,
    names: Iterable[str] = tuple(registry.ARCHITECTURES),
    depth: tuple[int, ...] = (),
) -> ModelConfig | None:
    """Returns the network whose names and shapes are exactly a file's, under any prefix; None if there is none.

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
        found = _best(sets, probe)
        if probe.keys() == found.keys():
            config = _read_off(probe, found, name=name, depth=depth)
            if config is not None and _fits(config, found):
                return config
    return None


def likely_sizes(sets: Mapping[Path, TensorSet], *, name: str, depth: tuple[int, ...] = ()) -> ModelConfig | None:
    """The sizes of a file that holds most tensors of an architecture, but not all or others too; None if it does not.

    With them an error names the tensor that is missing or too many, not the many whose shapes are not the published.
    """
    probe = _probe(name, depth)
    found = _best(sets, probe)
    if 2 * len(probe.keys() & found.keys()) < len(probe):
        return None
    try:
        config = _read_off(probe, found, name=name, depth=depth)
        if config is not None:
            expected_shapes(config)
        return config
    except (KeyError, InputError):  # the tensors that tell are not there, or tell of no network
        return None


def _best(sets: Mapping[Path, TensorSet], probe: Shapes) -> dict[str, tuple[int, ...]]:
    """The shapes of the set that holds most of a network's names, by these."""
    places = locate(sets, probe)
    return known_shapes(max(places, key=lambda place: (len(place.found), -len(place.extra)))) if places else {}


def describe(config: ModelConfig) -> str:
    """One clause for an error line: `preact_resnet18 with model.width=16, model.num_classes=10`."""
    settings: dict[str, object] = {"width": config.width, "num_classes": config.num_classes}
    if config.image_shape != ModelConfig().image_shape:
        settings["image_shape"] = config.image_shape
    return f"{config.name} with {', '.join(f'model.{key}={value}' for key, value in settings.items())}"


@functools.cache
def _probe(name: str, depth: tuple[int, ...]) -> Shapes:
    return expected_shapes(dataclasses.replace(_PROBE, name=name, depth=depth))


def _read_off(probe: Shapes, found: Shapes, *, name: str, depth: tuple[int, ...]) -> ModelConfig | None:
    """The sizes of a network from the axes where the probe has its own; None if they make no network."""
    first = next(key for key, shape in probe.items() if len(shape) == 4 and shape[1] == _PROBE.image_shape[2])
    wide = next((key for key, shape in probe.items() if len(shape) == 4 and shape[0] == _PROBE.width), first)
    head = next(key for key, shape in probe.items() if shape == (_PROBE.num_classes,))
    if len(found[first]) != 4 or len(found[wide]) != 4 or len(found[head]) != 1:
        return None
    side = ModelConfig().image_shape[0]
    if _POSITIONS in found and len(found[_POSITIONS]) == 3:
        side = PATCH * math.isqrt(max(0, found[_POSITIONS][1] - 1))
    width = found[wide][0] * _PROBE.width // probe[wide][0]
    return ModelConfig(name, width, depth, (side, side, found[first][1]), found[head][0])


def _fits(config: ModelConfig, found: Shapes) -> bool:
    try:
        expected = expected_shapes(config) if config.width > 0 else {}
    except InputError:  # sizes that the network does not come in
        return False
    return expected.keys() == found.keys() and all(same_shape(found[name], expected[name]) for name in expected)
