"""Writes the scores of clean networks, which verdicts compare with, from a bench's rows: `python -m launch.calibrate`.

Read are the rows without an attack of `results/bench_otbr_plus.jsonl` and `results/bench_disarm.jsonl`; written is
`otbr_jax/report/calibration.json`. Printed is what evidence is usual (`otbr_jax.detectors.out_of_line.USUAL`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from absl import flags

from launch import cli
from otbr_jax.errors import InputError
from otbr_jax.paths import local_path

RESULTS = flags.DEFINE_string("results", "results", "The folder of the benches' rows, one JSON object per line.")
OUT = flags.DEFINE_string("out", "otbr_jax/report/calibration.json", "The file to write.")


def main(arguments: Sequence[str]) -> None:
    """Reads, writes and says how many networks."""
    from otbr_jax.files import write_text
    from otbr_jax.report import rows
    from otbr_jax.report.calibration import SOURCES, calibration, usual, written

    del arguments
    try:
        networks: list[dict[str, Any]] = []
        kinds: dict[str, tuple[float, float]] = {}
        for name, seeds in SOURCES.items():
            path = local_path(RESULTS.value, name="--results") / f"{name}.jsonl"
            found = rows.parse(path.read_text(encoding="utf-8"), name=str(path))
            networks += calibration(found, seeds=seeds)
            kinds |= usual(found, seeds=seeds) if name == "bench_disarm" else {}
        write_text(local_path(OUT.value, name="--out"), written(networks))
    except OSError as error:
        raise InputError(f"--results, --out: cannot read and write {error.filename} ({error.strerror})") from None
    print(f"{OUT.value}: {len(networks)} clean networks")
    for kind, (middle, deviation) in kinds.items():
        print(f"usual largest evidence, {kind}: {middle:.2f}, deviation {deviation:.2f}")


if __name__ == "__main__":
    cli.run(main)
