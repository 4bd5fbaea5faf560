"""Writes the tables of README.md and docs/ from results/*.jsonl: `python -m launch.tables`.

A table stands between the lines `<!-- table: NAME -->` and `<!-- end -->` and is made from results/NAME.jsonl;
NAME.PART is another table of the same rows. The leaderboard is also written to results/leaderboard.jsonl, a JSON object
a line. `--check` changes nothing and fails if a table is not what the rows say; `--print=NAME` only prints one.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from launch import cli
from otbr_jax.errors import InputError
from otbr_jax.files import write_text
from otbr_jax.paths import local_path

if TYPE_CHECKING:
    from otbr_jax.report import blocks

PAGES = flags.DEFINE_list(
    "pages", [], "Pages with tables to write; by default README.md and all of docs/ that have any."
)
RESULTS = flags.DEFINE_string("results", "results", "Folder of NAME.jsonl, one JSON object per line.")
CHECK = flags.DEFINE_bool("check", False, "Changes nothing; fails if a table is not what the rows say.")
PRINT = flags.DEFINE_enum("print", None, cli.choices("tables"), "Prints that table and writes no page.")


def main(arguments: Sequence[str]) -> None:
    """Writes, checks or prints."""
    from otbr_jax.report import blocks

    del arguments
    if PRINT.value:
        print(_table(PRINT.value))
        return
    pages = [_fill(page) for page in _pages()]  # all of them, before one is written
    for path, page, bodies in pages:
        stale = [block for block, body in bodies.items() if "\n".join(block.body) != body]
        if stale and CHECK.value:
            raise InputError(
                f"{path}:{stale[0].line}: expected the table {stale[0].name!r} as its rows say, found another; "
                "`python -m launch.tables` writes it"
            )
        if stale:
            try:
                write_text(path, blocks.fill(page, bodies))
            except OSError as error:
                raise InputError(f"--pages: cannot write {path} ({error.strerror})") from None
        print(f"{path}: {len(bodies)} tables, {len(stale)} rewritten")
    _write_entries()


def _pages() -> list[pathlib.Path]:
    """The pages of `--pages`, or those that have a table."""
    if PAGES.value:
        return [pathlib.Path(page) for page in PAGES.value]
    pages = [pathlib.Path("README.md"), *sorted(pathlib.Path("docs").rglob("*.md"))]
    return [page for page in pages if "\n<!-- table:" in _read(page, name="--pages")]


def _write_entries() -> None:
    """Writes or checks results/leaderboard.jsonl; does nothing without rows of that bench."""
    from otbr_jax.report import leaderboard, rows

    folder = local_path(RESULTS.value, name="--results")
    source, path = folder / "bench_leaderboard.jsonl", folder / "leaderboard.jsonl"
    if not source.exists():
        return
    wanted = leaderboard.lines(rows.parse(_read(source, name="--results"), name=str(source)))
    if path.exists() and path.read_text(encoding="utf-8") == wanted:
        return
    if CHECK.value:
        raise InputError(f"{path}: expected what {source} says, found another; `python -m launch.tables` writes it")
    write_text(path, wanted)
    print(f"{path}: written")


def _fill(path: pathlib.Path) -> tuple[pathlib.Path, str, dict[blocks.Block, str]]:
    """A page, its text, and the table for each block of it."""
    from otbr_jax.report import blocks
    from otbr_jax.report.results_tables import TABLES

    page = _read(path, name="--pages")
    return path, page, {block: _table(block.name) for block in blocks.find(page, name=str(path), known=TABLES)}


def _table(name: str) -> str:
    from otbr_jax.report import rows
    from otbr_jax.report.results_tables import markdown

    path = local_path(RESULTS.value, name="--results") / f"{name.partition('.')[0]}.jsonl"
    return markdown(name, rows.parse(_read(path, name="--results"), name=str(path)))


def _read(path: pathlib.Path, *, name: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{name}: expected a file at {path}, found none to read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{name}: expected text in UTF-8 at {path}, found something else") from None


if __name__ == "__main__":
    cli.run(main)
