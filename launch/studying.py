"""What the launchers of studies share: run the study, append its rows, print its table and its files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from launch.hosts import own_flag
from otbr_jax.paths import local_path

if TYPE_CHECKING:
    import jax

    from otbr_jax.studies.study import Study


def define_workdir(default: str) -> flags.FlagHolder[str]:
    """Defines `--workdir`."""
    return own_flag(
        flags.DEFINE_string("workdir", default, "Directory for stages and results; resumed if used before.")
    )


def define_results() -> flags.FlagHolder[str]:
    """Defines `--results`."""
    text = "A .jsonl file to append the rows to, with commit and hardware; figures are written beside it."
    return own_flag(flags.DEFINE_string("results", "", text))


def run(study: Study, config: Any, *, workdir: str, results: str, devices: Sequence[jax.Device] | None) -> None:
    """Runs a study in `workdir`; appends its rows to the file `results`, if there is one, with figures beside it."""
    from otbr_jax.files import write_figure
    from otbr_jax.report.rows import append_row, mend
    from otbr_jax.runs import hosts
    from otbr_jax.runs.provenance import provenance
    from otbr_jax.studies.study import run_study

    origin = provenance() if results else {}
    path = local_path(results, name="--results")
    if results:
        hosts.first(lambda: mend(path))  # a file that cannot be written raises before anything is trained
    findings = run_study(study, config, workdir, devices=devices)
    if results and hosts.is_first():
        for row in study.rows(config, findings):
            append_row(path, row | origin)
        for ending, figure in study.figures(config, findings).items():
            write_figure(path.with_name(f"{path.stem}_{ending}.png"), figure, dpi=130, facecolor="white")
    print(f"\n{study.table(config, findings)}\n")
    for name, what in study.descriptions.items():
        print(f"{workdir}/{name}  {what}")
