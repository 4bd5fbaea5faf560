"""Tables inside a page of Markdown, each between a line `<!-- table: NAME -->` and a line `<!-- end -->`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from otbr_jax.errors import InputError

_START, _END = re.compile(r"<!--\s*table:\s*(.*?)\s*-->"), "<!-- end -->"


class Block(NamedTuple):
    """A table on a page: its name, the number of the line that opens it (from 1), and the lines up to its end."""

    name: str
    line: int
    body: tuple[str, ...]


def find(page: str, *, name: str, known: Collection[str]) -> list[Block]:
    """The blocks of a page from top to bottom.

    Args:
      page: its text.
      name: its name, for messages.
      known: names that a table may have.

    Raises:
      InputError: if there is no block, one does not end, or its name is unknown.
    """
    lines = [line.strip() for line in page.split("\n")]
    blocks = []
    for number, line in enumerate(lines, start=1):
        if start := _START.fullmatch(line):
            if start[1] not in known:
                raise InputError(f"{name}:{number}: expected a table of {[*known]}, found {start[1]!r}")
            inside = lines[number:]
            length = inside.index(_END) if _END in inside else len(inside)
            if length == len(inside) or any(_START.fullmatch(other) for other in inside[:length]):
                raise InputError(f"{name}:{number}: expected {_END} after the table {start[1]!r}, found none")
            blocks.append(Block(start[1], number, tuple(page.split("\n")[number : number + length])))
    if not blocks:
        raise InputError(f"{name}: expected a block <!-- table: NAME --> ... {_END}, found none")
    return blocks


def fill(page: str, bodies: Mapping[Block, str]) -> str:
    """The page with new bodies for its blocks."""
    lines = page.split("\n")
    for block in sorted(bodies, key=lambda block: block.line, reverse=True):  # so that the numbers above stay
        lines[block.line : block.line + len(block.body)] = bodies[block].split("\n")
    return "\n".join(lines)
