"""What are the parts of TSBD worth? `python -m launch.ablate [--workdir=DIR]`.

Repairs victims in ways that differ from TSBD in one thing each: what is set to zero, how it is fine-tuned, which
neurons are chosen, how much was poisoned, how many clean images there are. Leaves `ablation.html` with tables and
figures and `ablation.json` with all numbers; see configs/ablate.py for other data.
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
