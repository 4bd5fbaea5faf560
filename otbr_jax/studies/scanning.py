"""Many checkpoints, one verdict each: what is compiled for a network serves all checkpoints of its kind."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax

from otbr_jax import plan as plans
from otbr_jax.data import sources
from otbr_jax.detectors.detector import Detector, Verdict
from otbr_jax.errors import InputError
from otbr_jax.graph.choose import choose_layers
from otbr_jax.interop.tensor_files import is_published_folder, is_tensor_folder, read_tensors
from otbr_jax.models.registry import ModelConfig
from otbr_jax.paths import local_path
from otbr_jax.plan import Setup
from otbr_jax.report.calibration import clean_scores
from otbr_jax.runs import ahead
from otbr_jax.runs.identify import identify
from otbr_jax.runs.networks import Subject, check_classes, open_network
from otbr_jax.runs.numerics import as_usual
from otbr_jax.studies.detection import given_clean
from otbr_jax.studies.inspection import detector_of

SUFFIXES = (".pt", ".pth", ".pkl", ".bin", ".ckpt", ".tar", ".safetensors")
"""Of files that a folder is searched for."""
_ORBAX = ("_CHECKPOINT_METADATA", "_METADATA")


def checkpoints(path: str | os.PathLike[str]) -> list[pathlib.Path]:
    """The checkpoints below a folder, in a list (a text file, one path a line), or the file itself; sorted.

    Folders of Orbax and of Hugging Face count as one. Paths in a list are relative to the list.

    Raises:
      InputError: if there is nothing at that path, or no checkpoint.
    """
    root = local_path(path, name="--scan")
    if not root.exists():
        raise InputError(f"--scan: expected a folder, a file or a list of checkpoints, found nothing at {root}")
    if root.suffix in (".txt", ".lst"):
        lines = [line.strip() for line in root.read_text(encoding="utf-8").splitlines()]
        found = [root.parent / os.path.expanduser(line) for line in lines if line and not line.startswith("#")]
    else:
        found = sorted(_below(root))
    if not found:
        raise InputError(f"--scan: expected checkpoints ({', '.join(SUFFIXES)}, Orbax folders), found none in {root}")
    return found


def _below(path: pathlib.Path) -> Iterator[pathlib.Path]:
    if not path.is_dir() or is_published_folder(path) or any((path / name).exists() for name in _ORBAX):
        yield path
        return
    for each in path.iterdir():
        if each.is_dir() or each.suffix in SUFFIXES:
            yield from _below(each)


@as_usual()
def scan(
    config: Any, paths: Sequence[pathlib.Path], *, detector: str = "", say: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Asks a detector about every checkpoint.

    Args:
      config: the settings: `model` names the network, which is told from the file where it is another; `data` how
        images are prepared; `clean` the images of a detector that needs any.
      paths: the checkpoints.
      detector: its name; empty for the defence's own.
      say: takes each line as it is found.

    Returns:
      A line for each checkpoint, plain JSON values: `checkpoint`, `network`, `detector`, `backdoored`, `suspect`,
      `score`, `threshold`, `p_value`, `false_positive_rate` and `seconds`; or `checkpoint` and `error`.

    Raises:
      InputError: if there is no such detector, or it needs clean images and there are none.
    """
    chosen, own = detector_of(config, detector)
    known: dict[Any, tuple[Callable[..., dict[str, Any]], Mapping[str, Any]]] = {}
    lines = []
    for path in paths:
        began = time.monotonic()
        try:
            model, subject = _opened(config.model, path)
            kind = (model, None if subject.template is None else str(subject.template.normalisation))
            if kind not in known:
                known[kind] = _programs(config, subject, chosen, own)
            run, clean = known[kind]
            values = run({"victim": subject.variables, **clean}, key=jax.random.key(config.seed))
            line = _line(chosen.verdict(own, jax.device_get(values)), chosen, model)
        except InputError as error:
            line = {"error": str(error)}
        line = {"checkpoint": str(path), **line, "seconds": round(time.monotonic() - began, 2)}
        lines.append(line)
        say(line)
    return lines


def status(lines: Sequence[Mapping[str, Any]]) -> int:
    """The exit status of a scan: 3 if a network looks backdoored, 2 if none does but one could not be read, else 0."""
    if any(line.get("backdoored") for line in lines):
        return 3
    return 2 if any("error" in line for line in lines) else 0


def _opened(model: ModelConfig, path: pathlib.Path) -> tuple[ModelConfig, Subject]:
    """The network of a checkpoint, and its settings without the checkpoint: those given, or those of the file."""
    try:
        subject = open_network(dataclasses.replace(model, checkpoint=str(path)))
    except InputError:
        if path.is_dir() and not is_tensor_folder(path):
            raise
        told = identify(read_tensors(path, name="model.checkpoint").sets)
        if told is None:
            raise
        side, channels = model.image_shape[:2], told.image_shape[2]
        model = dataclasses.replace(told, image_shape=(*side, channels), entry=model.entry)
        subject = open_network(dataclasses.replace(model, checkpoint=str(path)))
    check_classes(subject.network)
    return model, subject


def _programs(
    config: Any, subject: Subject, chosen: Detector, own: Any
) -> tuple[Callable[..., dict[str, Any]], Mapping[str, Any]]:
    """The detector's programs for a kind of network, and the clean images that they take."""
    network = dataclasses.replace(subject.network, prepare=partial(sources.preprocess, config=config.data))
    setup = Setup(network, subject.graph, choose_layers(subject.graph, config.way.layers(config)))
    plan = chosen.plan(own)
    for step in plan:
        ahead.say(step, setup, subject.variables)
    return plans.programs(plan, setup), given_clean(config, chosen, network)


def _line(found: Verdict, chosen: Detector, model: ModelConfig) -> dict[str, Any]:
    scores = clean_scores(chosen.by) if found.p_value is None else ()
    rate = sum(score >= found.score for score in scores) / len(scores) if scores else None
    return {
        "network": model.name if ":" in model.name else f"{model.name}, width {model.width}",
        "detector": chosen.name,
        "backdoored": bool(found.backdoored),
        "suspect": found.suspect,
        "score": round(float(found.score), 4),
        "threshold": found.threshold,
        "p_value": found.p_value,
        "false_positive_rate": None if rate is None else round(rate, 4),
    }
