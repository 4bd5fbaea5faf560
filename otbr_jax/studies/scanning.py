"""Scans many checkpoints, with one verdict each; checkpoints of one architecture share compiled programs."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from otbr_jax import plan as plans
from otbr_jax.data.sources import DataConfig
from otbr_jax.defenses.registry import defense
from otbr_jax.detectors.detector import Detector, conclude
from otbr_jax.detectors.verdict import Backdoored, Verdict
from otbr_jax.errors import InputError
from otbr_jax.interop.tensor_files import is_published_folder
from otbr_jax.models.registry import ModelConfig
from otbr_jax.paths import CHECKPOINTS, existing
from otbr_jax.runs import estimate
from otbr_jax.runs.infer_model import infer_settings
from otbr_jax.runs.loading import read_checkpoint
from otbr_jax.runs.numerics import default_numerics
from otbr_jax.runs.progress import progress_bar
from otbr_jax.runs.session import Session, open_session
from otbr_jax.studies.detection import clean_inputs
from otbr_jax.studies.inspection import choose_detector
from otbr_jax.studies.repair_config import RepairConfig
from otbr_jax.types import Variables

SUFFIXES = (".pt", ".pth", ".pkl", ".bin", ".ckpt", ".tar", ".safetensors")
"""The suffixes of checkpoints that a folder is searched for."""
DetectFn = Callable[[Sequence[Variables]], list[dict[str, Any]]]
"""Variables of networks of one architecture, at most a stack of them -> the results for each one's line."""
_ORBAX = ("_CHECKPOINT_METADATA", "_METADATA")


def list_checkpoints(path: str | os.PathLike[str]) -> list[pathlib.Path]:
    """The checkpoints below a folder, in a list (a text file, one path a line), or the file itself; sorted.

    Folders of Orbax and of Hugging Face count as one. Paths in a list are relative to the list.

    Raises:
      InputError: if there is nothing at that path, or no checkpoint.
    """
    root = existing(path, name="--scan", expected=CHECKPOINTS)
    if root.suffix in (".txt", ".lst"):
        lines = [line.strip() for line in root.read_text(encoding="utf-8").splitlines()]
        paths = [root.parent / os.path.expanduser(line) for line in lines if line and not line.startswith("#")]
    else:
        paths = sorted(_below(root))
    if not paths:
        raise InputError(f"--scan: expected checkpoints ({', '.join(SUFFIXES)}, Orbax folders), found none in {root}")
    return paths


def _below(path: pathlib.Path) -> Iterator[pathlib.Path]:
    if not path.is_dir() or is_published_folder(path) or any((path / name).exists() for name in _ORBAX):
        yield path
        return
    for each in path.iterdir():
        if each.is_dir() or each.suffix in SUFFIXES:
            yield from _below(each)


class StackMember(NamedTuple):
    """A checkpoint that waits until its stack is full: its path, its variables, and the seconds of loading it."""

    path: pathlib.Path
    variables: Variables
    seconds: float


@default_numerics()
def scan(
    config: RepairConfig,
    paths: Sequence[pathlib.Path],
    *,
    detector: str = "",
    stack: int = 1,
    say: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """Runs a detector on every checkpoint.

    Args:
      config: the settings. `model` is the architecture to try first; if a checkpoint is of another one, its tensors say
        which. `data` says how images are prepared, `clean` which images a detector gets that needs any.
      paths: the checkpoints.
      detector: its name; empty for the defence's own.
      stack: how many networks of one architecture run at once, at least 1. A stack that is not full at the end is
        filled up with copies.
      say: takes each line when it is ready, those of a stack together.

    Returns:
      A line for each checkpoint, in their order, plain JSON values: `checkpoint`, `network`, the verdict without scores
      and evidence of each class (see `Verdict`), and `seconds`; or `checkpoint` and `error`.

    Raises:
      InputError: if there is no such detector, it needs clean images and there are none, or `stack` is less than 1.
    """
    if stack < 1:
        raise InputError(f"--stack: expected a whole number of at least 1, found {stack}")
    chosen, own = choose_detector(config, detector)
    detect_fns: dict[Any, DetectFn] = {}
    waiting: dict[Any, list[StackMember]] = {}
    lines: dict[pathlib.Path, dict[str, Any]] = {}

    def report(path: pathlib.Path, line: Mapping[str, Any], seconds: float) -> None:
        lines[path] = {"checkpoint": str(path), **line, "seconds": round(seconds, 2)}
        say(lines[path])
        advance()

    def detect(kind: Any) -> None:
        began, members = time.monotonic(), waiting.pop(kind)
        results = detect_fns[kind]([member.variables for member in members])
        share = (time.monotonic() - began) / len(members)
        for member, line in zip(members, results, strict=True):
            report(member.path, line, member.seconds + share)

    with progress_bar("scanning", len(paths), unit="checkpoint") as advance:
        for path in paths:
            began = time.monotonic()
            try:
                session = _open(config.victim.model, config.victim.data, path)
                source = session.source
                model = dataclasses.replace(source.config, checkpoint="")
                kind = (model, None if source.template is None else str(source.template.normalisation))
                if kind not in detect_fns:
                    detect_fns[kind] = _detect_fn(config, session, chosen, own, stack)
            except InputError as error:
                report(path, {"error": str(error)}, time.monotonic() - began)
                continue
            assert source.variables is not None
            waiting.setdefault(kind, []).append(StackMember(path, source.variables, time.monotonic() - began))
            if len(waiting[kind]) == stack:
                detect(kind)
        for kind in [*waiting]:
            detect(kind)
    return [lines[path] for path in paths]


def exit_status(lines: Sequence[Mapping[str, Any]]) -> int:
    """The exit status of a scan.

    3: a network is backdoored; 2: none is, but a file could not be read or the detector cannot tell; 0: all are clean.
    """
    verdicts = {line.get("backdoored", "error") for line in lines}
    if Backdoored.YES in verdicts:
        return 3
    return 0 if verdicts <= {Backdoored.NO} else 2


def _open(model: ModelConfig, data: DataConfig, path: pathlib.Path) -> Session:
    """Opens a checkpoint, which is read once, as `model` or, if it is no such network, as its tensors say."""
    model = dataclasses.replace(model, checkpoint=str(path))
    checkpoint = read_checkpoint(path, name="model.checkpoint")
    try:
        return open_session(model, data, checkpoint=checkpoint)
    except InputError as error:
        if not model.name:
            raise
        # Sizes may differ from those of `model`; no tensor has the sides of images.
        unnamed = ModelConfig("", image_shape=model.image_shape, checkpoint=model.checkpoint, entry=model.entry)
        try:
            infer_settings(unnamed, checkpoint)
        except InputError:
            raise error from None
        return open_session(unnamed, data, checkpoint=checkpoint)


def _detect_fn(config: RepairConfig, session: Session, chosen: Detector, own: Any, stack: int) -> DetectFn:
    """The detector's programs for one architecture, as a function of the variables of a stack of networks."""
    source, model = session.source, session.source.config
    layers = defense(config.defense).layers(config.method)
    setup = plans.set_up(session.network, source.graph, layers=layers)
    plan, clean = chosen.plan(own), clean_inputs(session, chosen, config.clean, seed=config.clean_seed)
    for step in plan:
        estimate.announce(step, setup, source.variables)
    key = jax.random.key(config.victim.seed)
    run = plans.programs(plan, setup) if stack == 1 else plans.stacked_programs(plan, setup)

    def values_of(members: Sequence[Variables]) -> list[Mapping[str, Any]]:
        if stack == 1:
            return [jax.device_get(run({"victim": members[0], **clean}, key=key))]
        full = plans.stack_trees([members[index % len(members)] for index in range(stack)])
        values = jax.device_get(run({"victim": full}, clean, keys=jnp.broadcast_to(key, (stack,))))
        return [plans.tree_entry(values, index) for index in range(len(members))]

    def detect(members: Sequence[Variables]) -> list[dict[str, Any]]:
        try:
            return [_line(conclude(chosen, own, values, draw=False), model) for values in values_of(members)]
        except InputError as error:
            if len(members) == 1:
                return [{"error": str(error)}]
            return [line for member in members for line in detect([member])]  # one of them fails: run each by itself

    return detect


def _line(verdict: Verdict, model: ModelConfig) -> dict[str, Any]:
    network = f"{model.name}, width {model.width}" if model.width else model.name
    values = {name: value for name, value in verdict.plain().items() if name not in ("scores", "evidence")}
    return {"network": network, **values}
