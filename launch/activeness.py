"""Are neurons of a backdoored network more active while it is unlearned? `python -m launch.activeness [--workdir=DIR]`.

Without arguments it trains networks with and without a backdoor on small images that ship with scikit-learn. Leaves
`activeness.html` with the figures, `activeness.json` with the numbers and `activeness.csv` with every neuron; see
configs/activeness.py for a network of your own.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from absl import flags

from launch import cli
from otbr_jax.studies.activeness import ActivenessConfig, rows, study_activeness, summarize
from otbr_jax.experiments.bench import append_row
from otbr_jax.runs.provenance import provenance
from otbr_jax.report.activeness_page import activeness_table

CONFIG = cli.define_config("activeness.py", ActivenessConfig)
WORKDIR = flags.DEFINE_string("workdir", "runs/activeness", "Directory for stages and results; resumed if used before.")

RESULTS = flags.DEFINE_string(
    "results", "", "A .jsonl file that gets a row for each victim and one with the AUCs, with commit and hardware."
)


def main(arguments: Sequence[str]) -> None:
    """Runs the study and prints its table."""
    del arguments
    config = CONFIG()
    origin = provenance() if RESULTS.value else {}
    found = study_activeness(config, WORKDIR.value)
    for row in rows(config, found) if RESULTS.value else []:
        append_row(pathlib.Path(RESULTS.value), row | origin)
    print(f"\n{activeness_table(summarize(config, found))}\n")
    for name, what in (
        ("activeness.html", "figures: activeness by neuron and layer, ROC curves"),
        ("activeness.json", "all scores"),
        ("activeness.csv", "every neuron's activeness and weight change"),
    ):
        print(f"{WORKDIR.value}/{name}  {what}")


if __name__ == "__main__":
    cli.run(main, config=CONFIG)
