"""The settings of a repair: those of a victim, and those of the defence that repairs it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np

from otbr_jax.data.clean import CleanConfig
from otbr_jax.defenses.registry import DEFENSES, defense
from otbr_jax.errors import InputError
from otbr_jax.settings import as_dict, change, declarations, field, settings, wrong
from otbr_jax.victims.config import VictimConfig
from otbr_jax.victims.relearning import RelearningConfig

KINDS = {name: each.Config for name, each in DEFENSES.items()}
"""The classes of the settings of all defences."""


@settings("")
class RepairConfig:
    """The settings of a repair.

    The network comes from a checkpoint (`model.checkpoint`), and `training` is then unused; or it is a victim trained
    for the purpose. A defence that takes clean images uses those of `clean`, and nothing else of `data`. In flags and
    dictionaries the settings of the victim and of the defence stand beside the others: `model`, not `victim.model`.
    """

    victim: VictimConfig = field(default=VictimConfig(), beside=True, doc="the network, its data and its backdoor.")
    defense: str = field(default="otbr", choices=tuple(DEFENSES), doc="the method.")
    method: Any = field(
        default=KINDS["otbr"](), beside=True, kinds=KINDS, by="defense", doc="the settings of the defence."
    )
    clean: CleanConfig = field(default=CleanConfig(), doc="the clean images of a defence that takes any.")
    relearning: RelearningConfig = field(
        default=RelearningConfig(),
        formerly="comes_back",
        doc="a test of the repaired network: whether fine-tuning relearns the backdoor.",
    )
    repetition: int = field(
        default=0,
        at_least=0,
        below=2**32,
        doc="number of this run of the same defence on the same network; each draws other random numbers, and "
        "other clean images from a training set.",
    )

    def check(self) -> None:
        """The method's settings are those of the defence."""
        kind = defense(self.defense).Config
        if not isinstance(self.method, kind):
            raise wrong(self, "method", f"{kind.__name__} of {self.defense!r}", found=type(self.method).__name__)

    @property
    def clean_seed(self) -> int:
        """The seed that draws and holds out clean images: from `seed`, and `repetition` if that is not 0."""
        both = np.random.SeedSequence((self.victim.seed, self.repetition))
        return int(both.generate_state(1)[0]) if self.repetition else self.victim.seed


def repair_config(defense: str = "otbr", **fields: Any) -> RepairConfig:
    """The settings of a repair by the defence of that name, from fields under the names of their flags.

    Raises:
      InputError: names what is wrong with them.
    """
    if defense not in KINDS:
        raise InputError(f"defense: expected one of {[*DEFENSES]}, found {defense!r}")
    config = RepairConfig(defense=defense, method=KINDS[defense]())
    known = sorted(as_dict(config))
    for name in fields:
        if name not in known:
            raise InputError(f"config.{name}: expected settings of {defense!r}, {known}, found {name!r}")
    return change(config, **fields)


def repaired_by(defense: str, config: RepairConfig, **fields: Any) -> RepairConfig:
    """The settings of a repair of the same victim by the defence of that name; `fields` as in `repair_config`."""
    return repair_config(
        defense, **{name: getattr(config.victim, name) for name in declarations(VictimConfig)} | fields
    )


def plain_config(config: RepairConfig) -> dict[str, Any]:
    """The settings as plain JSON values for a row of results, without the paths of data and other attacks' settings."""
    values: dict[str, Any] = json.loads(json.dumps(as_dict(config)))
    if defense(config.defense).data == "none":
        del values["clean"]
    else:
        values["clean"] |= {"path": "", "data_dir": ""}
    values["data"] |= {"path": "", "data_dir": "", "note": ""}
    values["attack"] = config.victim.attack.settings()
    return values


def default_config(config: RepairConfig) -> dict[str, Any]:
    """`plain_config` of the defaults, with the same defence and attack."""
    attack = dataclasses.replace(type(config.victim.attack)(), name=config.victim.attack.name)
    return plain_config(repair_config(config.defense, attack=attack))
