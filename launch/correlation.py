"""Do random, clean and poison unlearning change the same neurons? `python -m launch.correlation [--workdir=DIR]`.

Without arguments it trains victims of several attacks on small images that ship with scikit-learn. Writes
`correlation.html` with the scatter plots, `correlation.json` with all numbers and `nwc.csv` with every neuron's weight
changes. A network of your own: configs/correlation.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from launch import cli, hosts, studying

CONFIG = cli.define_config("correlation.py", "correlation")
WORKDIR = studying.define_workdir("runs/correlation")
RESULTS = studying.define_results()
HOSTS = hosts.define_hosts()


def main(arguments: Sequence[str]) -> None:
    """Runs the study and prints its table."""
    from otbr_jax.studies.correlation import CORRELATION

    del arguments
    studying.run(CORRELATION, CONFIG(), workdir=WORKDIR.value, results=RESULTS.value, devices=HOSTS.devices())


if __name__ == "__main__":
    cli.run(main, config=CONFIG, hosts=HOSTS)
