"""Writes launch/index.json, from which programs answer bad input and `--help` at once: `python -m launch.write_index`.

It holds all settings and the values of the files in configs/. `--check` writes nothing, and fails if it is not current.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from launch import cli, index
from otbr_jax.errors import InputError
from otbr_jax.files import write_text

CHECK = flags.DEFINE_bool("check", False, "Changes nothing; fails if the file is not what the code says.")


def main(arguments: Sequence[str]) -> None:
    """Writes or checks."""
    from launch.indexing import text

    del arguments
    wanted = text()
    if index.FILE.exists() and index.FILE.read_text(encoding="utf-8") == wanted:
        print(f"{index.FILE}: current")
        return
    if CHECK.value:
        raise InputError(f"{index.FILE}: expected what the code says, found another; `python -m launch.write_index`")
    write_text(index.FILE, wanted)
    print(f"{index.FILE}: written")


if __name__ == "__main__":
    cli.run(main)
