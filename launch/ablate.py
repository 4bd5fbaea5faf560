"""Ablation of TSBD: what is each part worth? `python -m launch.ablate [--workdir=DIR]`.

Repairs victims by variants of TSBD that differ in one thing each: which weights are set to zero, how the network is
fine-tuned, which neurons are chosen, the poisoning ratio, the number of clean images. Writes `ablation.html` with
tables and figures, and `ablation.json` with all numbers. Other data: configs/ablate.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from launch import cli, hosts, studying

CONFIG = cli.define_config("ablate.py", "ablation")
WORKDIR = studying.define_workdir("runs/ablate")
RESULTS = studying.define_results()
HOSTS = hosts.define_hosts()


def main(arguments: Sequence[str]) -> None:
    """Runs the study and prints its table."""
    from otbr_jax.studies.ablation import ABLATION

    del arguments
    studying.run(ABLATION, CONFIG(), workdir=WORKDIR.value, results=RESULTS.value, devices=HOSTS.devices())


if __name__ == "__main__":
    cli.run(main, config=CONFIG, hosts=HOSTS)
