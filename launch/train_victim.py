"""Trains a victim: `python -m launch.train_victim --config=configs/victims/cifar10.py:ATTACK[,fast] --workdir=DIR`.

Writes into the working directory the checkpoint `victim`, the trigger's arrays `attack`, `victim.json` and
`trigger.html`. The same command resumes a training that was stopped. Prints the command that repairs the victim.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from absl import flags

from launch import cli, hosts

CONFIG = cli.define_config("victims/cifar10.py", "victim")
WORKDIR = flags.DEFINE_string("workdir", "runs/victim", "Directory for stages and results; resumed if used before.")
PROFILE = flags.DEFINE_bool(
    "profile", False, "Writes a JAX trace of the run to WORKDIR/profile, for xprof or Perfetto."
)
HOSTS = hosts.define_hosts()


def main(arguments: Sequence[str]) -> None:
    """Trains and measures the victim, and prints ACC and ASR by epoch."""
    from otbr_jax.report.numbers import percent
    from otbr_jax.victims.train import repair_flags, train_victim

    del arguments
    config = CONFIG()
    _, summary = train_victim(config, WORKDIR.value, profile=PROFILE.value, devices=HOSTS.devices())
    print(f"\n{'epoch':>6}{'ACC %':>8}{'ASR %':>8}")
    for row in summary["history"]["measured"]:
        print(f"{row['epoch']:>6}{percent(row['acc']):>8}{percent(row['asr']):>8}")
    print(f"\n{summary['poisoned']} poisoned images; data: {summary['data']}")
    print(f"{WORKDIR.value}/victim  the network (Orbax checkpoint)\n\nto repair it:\n")
    arguments = ["--config=configs/own_network.py", "--workdir=REPAIR_DIR", *repair_flags(config, WORKDIR.value)]
    print("python -m launch.repair", *(shlex.quote(argument) for argument in arguments))


if __name__ == "__main__":
    cli.run(main, config=CONFIG, hosts=HOSTS)
