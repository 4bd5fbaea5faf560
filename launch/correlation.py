"""Do neurons move alike under random, clean and poison unlearning? `python -m launch.correlation [--workdir=DIR]`.

Without arguments it trains victims of several attacks on small images that ship with scikit-learn. Leaves
`correlation.html` with the scatter plots, `correlation.json` with all numbers and `nwc.csv` with every neuron's weight
changes; see configs/correlation.py for a network of your own.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from absl import flags

from launch import cli
from otbr_jax.experiments import config as configs
from otbr_jax.experiments.bench import append_row
from otbr_jax.experiments.correlation import CorrelationConfig, correlate, rows, summarize
from otbr_jax.experiments.provenance import provenance
from otbr_jax.report.correlation_page import correlation_table

CONFIG = cli.define_config("correlation.py")
flags.adopt_module_key_flags(cli)
WORKDIR = flags.DEFINE_string(
    "workdir", "runs/correlation", "Directory for stages and results; resumed if used before."
)

RESULTS = flags.DEFINE_string("results", "", "A .jsonl file that gets a row for each victim, with commit and hardware.")


def main(arguments: Sequence[str]) -> None:
    """Runs the study and prints its table."""
    del arguments
    config = configs.from_dict(CorrelationConfig, CONFIG())
    origin = provenance() if RESULTS.value else {}
    studies = correlate(config, WORKDIR.value)
    for row in rows(config, studies) if RESULTS.value else []:
        append_row(pathlib.Path(RESULTS.value), row | origin)
    print(f"\n{correlation_table(summarize(config, studies))}\n")
    for name, what in (
        ("correlation.html", "scatter plots"),
        ("correlation.json", "all numbers"),
        ("nwc.csv", "every neuron's weight changes"),
    ):
        print(f"{WORKDIR.value}/{name}  {what}")


if __name__ == "__main__":
    cli.run(main)
