"""What are the parts of TSBD worth? `python -m launch.ablate [--workdir=DIR]`.

Repairs victims in ways that differ from TSBD in one thing each: what is set to zero, how it is fine-tuned, which
neurons are chosen, how much was poisoned, how many clean images there are. Leaves `ablation.html` with tables and
figures and `ablation.json` with all numbers; see configs/ablate.py for other data.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from absl import flags

from launch import cli
from otbr_jax.studies.ablation import AblationConfig, ablate, rows
from otbr_jax.experiments.bench import append_row, mend
from otbr_jax.runs.provenance import provenance
from otbr_jax.report import ablation_page

CONFIG = cli.define_config("ablate.py", AblationConfig)
WORKDIR = flags.DEFINE_string("workdir", "runs/ablate", "Directory for stages and results; resumed if used before.")

RESULTS = flags.DEFINE_string(
    "results",
    "",
    "A .jsonl file that gets a row for each victim and variant, with commit and hardware; NAME_DATA.png beside it gets "
    "the figure.",
)


def main(arguments: Sequence[str]) -> None:
    """Runs the ablation and prints its tables."""
    del arguments
    config = CONFIG()
    origin = provenance() if RESULTS.value else {}
    if RESULTS.value:
        mend(pathlib.Path(RESULTS.value))  # a file that cannot be written ends it before anything is trained
    found = rows(config, ablate(config, WORKDIR.value))
    if RESULTS.value:
        path = pathlib.Path(RESULTS.value)
        for row in found:
            append_row(path, row | origin)
        ablation_page.figure(found).savefig(
            path.with_name(f"{path.stem}_{config.data.name}.png"), dpi=130, facecolor="white"
        )
    print(f"\n{ablation_page.tables(found, n=config.tsbd.n)}\n")
    for name, what in (("ablation.html", "tables and figures"), ("ablation.json", "all numbers")):
        print(f"{WORKDIR.value}/{name}  {what}")


if __name__ == "__main__":
    cli.run(main, config=CONFIG)
