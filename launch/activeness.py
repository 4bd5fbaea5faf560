"""Are neurons of a backdoored network more active while it is unlearned? `python -m launch.activeness [--workdir=DIR]`.

Without arguments it trains networks with and without a backdoor on small images that ship with scikit-learn. Writes
`activeness.html` with the figures, `activeness.json` with the numbers and `activeness.csv` with every neuron. A network
of your own: configs/activeness.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from launch import cli, hosts, studying

CONFIG = cli.define_config("activeness.py", "activeness")
WORKDIR = studying.define_workdir("runs/activeness")
RESULTS = studying.define_results()
HOSTS = hosts.define_hosts()


def main(arguments: Sequence[str]) -> None:
    """Runs the study and prints its table."""
    from otbr_jax.studies.activeness import ACTIVENESS

    del arguments
    studying.run(ACTIVENESS, CONFIG(), workdir=WORKDIR.value, results=RESULTS.value, devices=HOSTS.devices())


if __name__ == "__main__":
    cli.run(main, config=CONFIG, hosts=HOSTS)
