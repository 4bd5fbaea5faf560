"""Trains a victim and writes the files that a repair needs: what the launcher calls."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from otbr_jax.attacks.registry import ATTACKS, AttackConfig
from otbr_jax.data.sources import DataConfig
from otbr_jax.errors import InputError
from otbr_jax.files import write_text
from otbr_jax.models.registry import ModelConfig
from otbr_jax.report import gallery
from otbr_jax.report.gallery import Example
from otbr_jax.runs import hosts, timing
from otbr_jax.runs.checkpoints import replace_checkpoint
from otbr_jax.runs.identity import versions
from otbr_jax.runs.run import Run
from otbr_jax.runs.session import Session, open_session
from otbr_jax.victims.config import VictimConfig
from otbr_jax.victims.examples import example_triggers
from otbr_jax.victims.training import History
from otbr_jax.victims.victims import Victim, check_trainable, open_victim, test_set


def train_victim(
    config: VictimConfig,
    workdir: str | os.PathLike[str],
    *,
    devices: Sequence[jax.Device] | None = None,
    profile: bool = False,
) -> tuple[Victim, dict[str, Any]]:
    """Trains the victim that `config` names, measures it and writes it to `workdir`.

    Writes there: the checkpoint `victim`, the trigger's arrays in `attack` (what `attack.assets` takes), `victim.json`
    with all numbers, and `trigger.html`, a page to look at the trigger.

    Args:
      config: the settings.
      workdir: directory for the stages and the results; resumed if it has been used before.
      devices: the devices that share the work; by default all local ones.
      profile: whether a JAX trace is written to `workdir`/profile; see `timing.profile`.

    Returns:
      `(victim, summary)`, the summary as `victim.json` holds it.

    Raises:
      InputError: names what is wrong with the settings, the data or the working directory.
    """
    session = open_session(config.model, config.data, devices=devices)
    if session.source.variables is not None:
        field = "checkpoint" if config.model.checkpoint else "name"
        raise InputError(
            f"model.{field}: expected a network without weights, to be trained, found {getattr(config.model, field)!r}"
        )
    check_trainable(session, config.attack, config.training)
    with session.directory(workdir) as directory, timing.profile(directory.path, wanted=profile):
        run = Run(session, directory, config.seed)
        victim = open_victim(run, config.attack, config.training)
        summary = summarize(config, session, victim)
        example = example_triggers(test_set(run, victim), config.attack, name=config.attack.name)
        if example is not None:
            summary["trigger"] = {"psnr": example.quality.psnr, "ssim": example.quality.ssim}
        try:
            hosts.first(lambda: _write(directory.path, victim, summary, example))
        except OSError as error:
            raise InputError(f"workdir: the victim cannot be written to {directory.path}: {error.strerror}") from None
        return victim, summary


def _write(folder: pathlib.Path, victim: Victim, summary: Mapping[str, Any], example: Example | None) -> None:
    """Writes the files of `train_victim`, and removes those of an earlier victim that this one lacks."""
    replace_checkpoint(folder / "victim", victim.stage.value["variables"])
    if "assets" in victim.stage.value:
        replace_checkpoint(folder / "attack", victim.stage.value["assets"])
    else:
        shutil.rmtree(folder / "attack", ignore_errors=True)
    if example is not None:
        write_text(folder / "trigger.html", gallery.render([example], title=f"Trigger: {example.name}"))
    else:
        (folder / "trigger.html").unlink(missing_ok=True)
    write_text(folder / "victim.json", json.dumps(summary, indent=1) + "\n")


def summarize(config: VictimConfig, session: Session, victim: Victim) -> dict[str, Any]:
    """All numbers of a trained victim as plain JSON values; fractions in [0, 1], None without a trigger."""
    stage, dataset = victim.stage, session.dataset
    assert dataset is not None  # or there would be nothing to train on
    history = History(**stage.value["history"])
    epochs = config.training.measured_epochs()
    measured = [
        {"epoch": epoch, "acc": _number(acc), "asr": _number(asr)}
        for epoch, acc, asr in zip(epochs, history.acc, history.asr, strict=True)
    ]
    return {
        "metrics": {name: value for name, value in measured[-1].items() if name != "epoch"},
        "history": {"loss": [_number(loss) for loss in history.loss], "measured": measured},
        "trigger": None,
        "poisoned": int(stage.value["poisoned"]),
        "training": {"epochs": config.training.epochs, **stage.provenance["notes"]},
        "data": dataset.provenance,
        "versions": versions(),
        "devices": [str(device.device_kind) for device in jax.local_devices()],
        "config": json.loads(json.dumps(dataclasses.asdict(config))),
    }


def _number(value: Any) -> float | None:
    return None if value != value else round(float(value), 6)


def repair_flags(config: VictimConfig, workdir: str) -> list[str]:
    """The flags with which `launch.repair` repairs a victim of `train_victim`, and measures with its trigger."""
    model = dataclasses.replace(config.model, checkpoint=f"{workdir}/victim")
    attack = config.attack
    if attack.name != "none" and ATTACKS[attack.name].make is not None:
        attack = dataclasses.replace(attack, assets=f"{workdir}/attack")
    values = dataclasses.asdict(VictimConfig(model=model, data=config.data, attack=attack))
    flags = [f"{name}={value}" for name, value in _changed(values, dataclasses.asdict(VictimConfig()), "--config")]
    # configs/own_network.py has no data and no trigger, and reads the network from a file.
    names = {"attack": AttackConfig().name, "data": DataConfig().name, "model": ModelConfig().name}
    usual = [part for part, name in names.items() if getattr(config, part).name == name]
    return [*flags, *(f"--config.{part}.name={names[part]}" for part in usual)]


def _changed(values: Mapping[str, Any], defaults: Mapping[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    for field, value in values.items():
        if isinstance(value, dict):
            yield from _changed(value, defaults[field], f"{name}.{field}")
        elif value != defaults[field]:
            yield f"{name}.{field}", value
