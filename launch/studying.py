"""What the launchers of studies share: run it, keep its rows, print its table and what it leaves."""

from __future__ import annotations

import sys
from typing import Any

from absl import flags

from otbr_jax.files import write_figure
from otbr_jax.paths import local_path
from otbr_jax.report.rows import append_row, mend
from otbr_jax.runs.provenance import provenance
from otbr_jax.studies.study import Study, run_study


def define_workdir(default: str) -> flags.FlagHolder[str]:
    """Defines `--workdir`."""
    return _own(flags.DEFINE_string("workdir", default, "Directory for stages and results; resumed if used before."))


def define_results() -> flags.FlagHolder[str]:
    """Defines `--results`."""
    text = "A .jsonl file that gets the rows, with commit and hardware; figures, if there are any, lie beside it."
    return _own(flags.DEFINE_string("results", "", text))


def _own(flag: flags.FlagHolder[str]) -> flags.FlagHolder[str]:
    """Counts a flag among those of the program that is run, for its help."""
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[flag.name])
    return flag


def run(study: Study, config: Any, *, workdir: str, results: str) -> None:
    """Runs a study in `workdir`; its rows go into the file `results`, where one is named, with figures beside it."""
    origin = provenance() if results else {}
    path = local_path(results, name="--results")
    if results:
        mend(path)  # a file that cannot be written ends it before anything is trained
    found = run_study(study, config, workdir)
    if results:
        for row in study.rows(config, found):
            append_row(path, row | origin)
        for ending, figure in study.figures(config, found).items():
            write_figure(path.with_name(f"{path.stem}_{ending}.png"), figure, dpi=130, facecolor="white")
    print(f"\n{study.table(config, found)}\n")
    for name, what in study.described.items():
        print(f"{workdir}/{name}  {what}")
