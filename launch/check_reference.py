"""Compares every stage of a method with reference numbers: `python -m launch.check_reference --reference=FILE.npz`.

Prints one JSON line for each comparison (name, max_abs, max_rel, tolerance, pass, note), and exits with status 1 if one
fails.
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from launch import cli
from otbr_jax.paths import REFERENCE as A_REFERENCE
from otbr_jax.paths import existing

REFERENCE = flags.DEFINE_string("reference", None, "The .npz file of reference numbers.", required=True)
METHOD = flags.DEFINE_enum("method", "otbr", ["otbr", "tsbd"], "Which method's numbers.")


def main(arguments: Sequence[str]) -> None:
    """Prints the comparisons."""
    from otbr_jax.studies.reference_otbr import check_otbr
    from otbr_jax.studies.reference_tsbd import check_tsbd
    from otbr_jax.studies.references import load_reference

    del arguments
    methods, failed = {"otbr": check_otbr, "tsbd": check_tsbd}, 0
    for comparison in methods[METHOD.value](load_reference(REFERENCE.value)):
        print(json.dumps(comparison.as_json()), flush=True)
        failed += not comparison.passed
    if failed:
        sys.exit(1)


def check() -> None:
    """Raises InputError if the flags are wrong."""
    existing(REFERENCE.value, name="--reference", expected=A_REFERENCE, is_there=pathlib.Path.is_file)


if __name__ == "__main__":
    cli.run(main, check=check)
