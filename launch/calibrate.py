"""Calibrates p-values: writes the scores of clean networks, from rows of benches. `python -m launch.calibrate`.

Reads the rows without an attack in `results/bench_otbr_plus.jsonl` and `results/bench_disarm.jsonl`, and writes
`otbr_jax/detectors/calibration.json`. Prints the median and deviation of each kind of evidence over clean networks, and
keeps those in the file, since every score is computed with them. `--evidence` replaces them; all scores change.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from launch import cli
from otbr_jax.errors import InputError
from otbr_jax.paths import local_path

RESULTS = flags.DEFINE_string("results", "results", "The folder of the benches' rows, one JSON object per line.")
OUT = flags.DEFINE_string("out", "otbr_jax/detectors/calibration.json", "The file to write.")
EVIDENCE = flags.DEFINE_bool("evidence", False, "Also replaces the medians and deviations of evidence: scores change.")


def main(arguments: Sequence[str]) -> None:
    """Reads the rows, writes the file, and prints how many networks are in it."""
    from otbr_jax.detectors.calibration import read_calibration
    from otbr_jax.files import write_text
    from otbr_jax.report import rows
    from otbr_jax.report.calibration import SOURCES, clean_evidence, updated, written

    del arguments
    out, folder = local_path(OUT.value, name="--out"), local_path(RESULTS.value, name="--results")
    try:
        paths = {name: folder / f"{source.bench}.jsonl" for name, source in SOURCES.items()}
        benches = {name: rows.parse(path.read_text(encoding="utf-8"), name=str(path)) for name, path in paths.items()}
        contents = updated(read_calibration(), benches, evidence=EVIDENCE.value)
        write_text(out, written(contents))
    except OSError as error:
        raise InputError(f"--results, --out: cannot read and write {error.filename} ({error.strerror})") from None
    for name, entry in contents.items():
        print(f"{OUT.value}: {len(entry['networks'])} clean networks scored by {name}")
        for kind, (middle, deviation) in clean_evidence(benches[name], SOURCES[name]).items():
            now = " and ".join(f"{value:g}" for value in entry.get("evidence", {}).get(kind, ()))
            print(f"{name}, largest {kind}: median {middle:.2f}, deviation {deviation:.2f}; in the file: {now}")


if __name__ == "__main__":
    cli.run(main)
