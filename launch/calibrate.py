"""Writes the scores of clean networks, which verdicts compare with, from a bench's rows: `python -m launch.calibrate`.

Read are results/bench_otbr_plus.jsonl's rows without an attack; written is otbr_jax/report/calibration.json.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from absl import flags

from launch import cli
from otbr_jax.errors import InputError
from otbr_jax.report import rows
from otbr_jax.report.calibration import FILE, SOURCE, calibration, written
from otbr_jax.runs.checkpoints import write_text

RESULTS = flags.DEFINE_string("results", f"results/{SOURCE}.jsonl", "The bench's rows, one JSON object per line.")
OUT = flags.DEFINE_string("out", f"otbr_jax/report/{FILE}", "The file to write.")


def main(arguments: Sequence[str]) -> None:
    """Reads, writes and says how many networks."""
    del arguments
    try:
        text = pathlib.Path(RESULTS.value).read_text(encoding="utf-8")
        networks = calibration(rows.parse(text, name=RESULTS.value))
        write_text(pathlib.Path(OUT.value), written(networks))
    except OSError as error:
        raise InputError(f"--results, --out: cannot read and write {error.filename} ({error.strerror})") from None
    print(f"{OUT.value}: {len(networks)} clean networks")


if __name__ == "__main__":
    cli.run(main)
