"""Many checkpoints, one verdict each: what is compiled for a network serves all checkpoints of its kind."""

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
from otbr_jax.studies.detection import given_clean
from otbr_jax.studies.inspection import detector_of
from otbr_jax.studies.repair_config import RepairConfig
from otbr_jax.types import Variables

SUFFIXES = (".pt", ".pth", ".pkl", ".bin", ".ckpt", ".tar", ".safetensors")
"""Of files that a folder is searched for."""
Asking = Callable[[Sequence[Variables]], list[dict[str, Any]]]
"""Variables of networks of one kind, at most a stack of them -> what a line says of each."""
_ORBAX = ("_CHECKPOINT_METADATA", "_METADATA")


def checkpoints(path: str | os.PathLike[str]) -> list[pathlib.Path]:
    """The checkpoints below a folder, in a list (a text file, one path a line), or the file itself; sorted.

    Folders of Orbax and of Hugging Face count as one. Paths in a list are relative to the list.

    Raises:
      InputError: if there is nothing at that path, or no checkpoint.
    """
    root = existing(path, name="--scan", expected=CHECKPOINTS)
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


class Scanned(NamedTuple):
    """A checkpoint that waits for its stack: its path, its variables, and the seconds that it has taken so far."""

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
    """Asks a detector about every checkpoint.

    Args:
      config: the settings: `model` names the network, which is told from the file where it is another; `data` how
        images are prepared; `clean` the images of a detector that needs any.
      paths: the checkpoints.
      detector: its name; empty for the defence's own.
      stack: how many networks of one kind are asked about at once, at least 1. A stack that is not full at the end is
        filled up with copies.
      say: takes each line as it is found, those of a stack together.

    Returns:
      A line for each checkpoint, in their order, plain JSON values: `checkpoint`, `network`, the verdict without scores
      and evidence of each class (see `Verdict`), and `seconds`; or `checkpoint` and `error`.

    Raises:
      InputError: if there is no such detector, it needs clean images and there are none, or `stack` is less than 1.
    """
    if stack < 1:
        raise InputError(f"--stack: expected a whole number of at least 1, found {stack}")
    chosen, own = detector_of(config, detector)
    asking: dict[Any, Asking] = {}
    waiting: dict[Any, list[Scanned]] = {}
    lines: dict[pathlib.Path, dict[str, Any]] = {}

    def found(path: pathlib.Path, line: Mapping[str, Any], seconds: float) -> None:
        lines[path] = {"checkpoint": str(path), **line, "seconds": round(seconds, 2)}
        say(lines[path])
        advance()

    def ask(kind: Any) -> None:
        began, members = time.monotonic(), waiting.pop(kind)
        answers = asking[kind]([member.variables for member in members])
        share = (time.monotonic() - began) / len(members)
        for member, line in zip(members, answers, strict=True):
            found(member.path, line, member.seconds + share)

    with progress_bar("scanning", len(paths), unit="checkpoint") as advance:
        for path in paths:
            began = time.monotonic()
            try:
                session = _opened(config.victim.model, config.victim.data, path)
                source = session.source
                model = dataclasses.replace(source.config, checkpoint="")
                kind = (model, None if source.template is None else str(source.template.normalisation))
                if kind not in asking:
                    asking[kind] = _asking(config, session, chosen, own, stack)
            except InputError as error:
                found(path, {"error": str(error)}, time.monotonic() - began)
                continue
            assert source.variables is not None
            waiting.setdefault(kind, []).append(Scanned(path, source.variables, time.monotonic() - began))
            if len(waiting[kind]) == stack:
                ask(kind)
        for kind in [*waiting]:
            ask(kind)
    return [lines[path] for path in paths]


def status(lines: Sequence[Mapping[str, Any]]) -> int:
    """The exit status of a scan.

    3: the answer is *yes* for one network; 2: for none, and a file could not be read or nobody can tell; 0: it is *no*
    for all.
    """
    said = {line.get("backdoored", "error") for line in lines}
    if Backdoored.YES in said:
        return 3
    return 0 if said <= {Backdoored.NO} else 2


def _opened(model: ModelConfig, data: DataConfig, path: pathlib.Path) -> Session:
    """The network of a checkpoint, which is read once: by the settings that are given, or by those of the file."""
    model = dataclasses.replace(model, checkpoint=str(path))
    checkpoint = read_checkpoint(path, name="model.checkpoint")
    try:
        return open_session(model, data, checkpoint=checkpoint)
    except InputError as error:
        if not model.name:
            raise
        # Sizes may be others than expected; sides of images no tensor tells.
        unnamed = ModelConfig("", image_shape=model.image_shape, checkpoint=model.checkpoint, entry=model.entry)
        try:
            infer_settings(unnamed, checkpoint)
        except InputError:
            raise error from None
        return open_session(unnamed, data, checkpoint=checkpoint)


def _asking(config: RepairConfig, session: Session, chosen: Detector, own: Any, stack: int) -> Asking:
    """The detector's programs for a kind of network, as a function that asks about so many at once."""
    source, model = session.source, session.source.config
    layers = defense(config.defense).layers(config.method)
    setup = plans.set_up(session.network, source.graph, layers=layers)
    plan, clean = chosen.plan(own), given_clean(session, chosen, config.clean, seed=config.clean_seed)
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

    def ask(members: Sequence[Variables]) -> list[dict[str, Any]]:
        try:
            return [_line(conclude(chosen, own, values, draw=False), model) for values in values_of(members)]
        except InputError as error:
            if len(members) == 1:
                return [{"error": str(error)}]
            return [line for member in members for line in ask([member])]  # one of them is at fault: each for itself

    return ask


def _line(found: Verdict, model: ModelConfig) -> dict[str, Any]:
    network = f"{model.name}, width {model.width}" if model.width else model.name
    said = {name: value for name, value in found.plain().items() if name not in ("scores", "evidence")}
    return {"network": network, **said}
