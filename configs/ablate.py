"""Ablation of TSBD on small victims: what is each part worth?

    python -m launch.ablate --workdir=runs/ablate                                              # scikit-learn's digits
    python -m launch.ablate --config=configs/ablate.py:mnist --workdir=runs/cpu/mnist/preact_resnet10-w8

After the colon: `digits`, with the settings of `configs/tsbd.py`; or `mnist` or `cifar10`, with the victims and
settings of the reduced bench (`configs/bench/cpu.py`, `configs/bench/tsbd.py`), reloaded from its working directory.
Victims with 5 % and 1 % poisoned images are trained beside those with 10 %.
"""

import dataclasses

import ml_collections

from configs.bench import cpu, tsbd
from otbr_jax.errors import InputError
from otbr_jax.studies.ablation import AblationConfig
from otbr_jax.victims.config import VictimConfig

ATTACKS = {"digits": ("badnets", "blended"), "mnist": ("badnets",), "cifar10": ("badnets", "blended")}


def get_config(data: str = "digits") -> ml_collections.ConfigDict:
    """The settings; every field can be set on the command line as `--config.FIELD=VALUE`."""
    if data not in ATTACKS:
        raise InputError(f"--config: expected FILE.py:DATA with one of {list(ATTACKS)}, found {data!r}")
    cell = tsbd.digits("badnets", 0) if data == "digits" else tsbd.with_tsbd(cpu.cell(data, "badnets"))
    repair = cell.config
    config = AblationConfig(
        **{field.name: getattr(repair.victim, field.name) for field in dataclasses.fields(VictimConfig)},
        attacks=ATTACKS[data],
        tsbd=dataclasses.replace(repair.method.tsbd, n=0.2),
        clean=repair.clean,
    )
    return ml_collections.ConfigDict(dataclasses.asdict(config))
