"""Everything that is printed in columns is a `Table`: made once, shown as text, HTML or Markdown."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from markupsafe import Markup
from tabulate import DataRow, Line, TableFormat, tabulate

from otbr_jax.errors import InputError
from otbr_jax.report import html


class Strong(str):
    """Text in bold; text alone where there is no bold."""


class Code(str):
    """Text in the letters of a program, such as a file's name."""


Cell = str | tuple[str, ...]
"""Plain text in one line, or several pieces of it; pieces may be `Strong` or `Code`."""


class Column(NamedTuple):
    """A column: its title, how its cells are aligned, and a title that it shares with its neighbours of that group."""

    title: str
    align: Literal["left", "right"] = "right"
    group: str = ""


_GAP = 2  # spaces between columns of text
_ROW = DataRow("", " " * _GAP, "")
_TEXT = TableFormat(Line("", "-", " " * _GAP, ""), None, None, None, _ROW, _ROW, 0, None)
_PIPES = DataRow("| ", " | ", " |")
_MARKDOWN = TableFormat(None, lambda widths, _: f"|{'---|' * len(widths)}", None, None, _PIPES, _PIPES, 0, None)


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns and rows.

    Attributes:
      columns: at least one; a plain title stands for a column, the first one aligned left, the others right.
      rows: a cell for each column; may be empty.
      kinds: the kind of each row, which pages show: `final`, `oracle`, `total` (text has a line above it) or nothing;
        left out where all are nothing.
      caption: what stands above the table; may be empty.
      notes: sentences below it.

    Raises:
      InputError: if there is no column, or the number of cells or kinds is wrong.
    """

    columns: Sequence[Column | str]
    rows: Sequence[Sequence[Cell]]
    kinds: Sequence[str] = ()
    caption: Cell = ""
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.columns:
            raise InputError("table: expected at least one column, found none")
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise InputError(f"table: row {index}: expected {len(self.columns)} cells, found {len(row)}")
        if len(self.kinds) not in (0, len(self.rows)):
            raise InputError(f"table: expected a kind for each of {len(self.rows)} rows, found {len(self.kinds)}")

    @property
    def heads(self) -> list[Column]:
        """The columns, plain titles made into columns."""
        aligns = itertools.chain(("left",), itertools.repeat("right"))
        return [
            Column(column, align) if isinstance(column, str) else column  # type: ignore[arg-type]
            for column, align in zip(self.columns, aligns, strict=False)
        ]

    @property
    def groups(self) -> list[tuple[str, list[Column]]]:
        """Neighbouring columns of one group under its title; a column of no group stays alone, under none."""
        runs = itertools.groupby(enumerate(self.heads), key=lambda place: place[1].group or place[0])
        grouped = [[head for _, head in run] for _, run in runs]
        return [(columns[0].group, columns) for columns in grouped]

    def text(self) -> str:
        """In letters of one width, a rule below the titles, and another above the notes; notes alone without rows."""
        if self.notes and not self.rows:
            return "\n".join(self.notes)
        rows = [[_plain(cell) for cell in row] for row in self.rows]
        spans, (titles, *body) = self._laid_out(rows)
        length = max(map(len, (titles, *body)))
        rule, lines = "-" * length, []
        if self.caption:
            lines.append(_plain(self.caption))
        if any(group for group, _ in self.groups):
            lines.append(self._group_line(spans))
        lines += [titles, rule]
        for index, line in enumerate(body):
            lines += [rule, line] if self.kinds and self.kinds[index] == "total" else [line]
        return "\n".join((*lines, rule, *self.notes) if self.notes else lines)

    def html(self) -> Markup:
        """As HTML that is safe to put into a page."""
        kinds = self.kinds or [""] * len(self.rows)
        rows = [(kind, [markup(cell) for cell in row]) for kind, row in zip(kinds, self.rows, strict=True)]
        label = _plain(self.caption) or f"Table: {', '.join(_plain(head.title) for head in self.heads if head.title)}"
        return Markup(html.render("table.html", table=self, rows=rows, caption=markup(self.caption), label=label))

    def markdown(self) -> str:
        """As a table of GitHub's Markdown between its caption and its notes, each a paragraph; groups have no place."""
        rows = [[_marked(cell) for cell in row] for row in self.rows]
        titles = [_marked(head.title) for head in self.heads]
        plain = {"stralign": None, "numalign": None, "disable_numparse": True, "preserve_whitespace": True}
        table = tabulate(rows, headers=titles, tablefmt=_MARKDOWN, **plain)
        caption = [_marked(self.caption)] if self.caption else []
        return "\n\n".join((*caption, table, *self.notes))

    __str__ = text

    def _laid_out(self, rows: list[list[str]]) -> tuple[list[tuple[int, int]], list[str]]:
        """Where each column of text begins and ends, and the lines of titles and rows."""
        heads = self.heads
        titles, first = [_plain(head.title) or " " for head in heads], 0  # no column without a width
        for group, columns in self.groups:
            last = first + len(columns) - 1
            widths = [max(len(line[i]) for line in (titles, *rows)) for i in range(first, last + 1)]
            missing = len(group) - sum(widths) - _GAP * (last - first)
            titles[last] = titles[last].rjust(widths[-1] + missing) if missing > 0 else titles[last]
            first = last + 1
        rule, *lines = tabulate(
            [titles, *rows],
            tablefmt=_TEXT,
            colalign=[head.align for head in heads],
            disable_numparse=True,
            preserve_whitespace=True,
        ).split("\n")
        return [match.span() for match in re.finditer("-+", rule)], lines

    def _group_line(self, spans: list[tuple[int, int]]) -> str:
        line, first = "", 0
        for group, columns in self.groups:
            start, end = spans[first][0], spans[first + len(columns) - 1][1]
            line = line.ljust(start) + group.center(end - start)
            first += len(columns)
        return line.rstrip()


def _pieces(cell: Cell) -> list[str]:
    """The cell's pieces of text in one line each."""
    return [type(piece)(" ".join(piece.splitlines())) for piece in ((cell,) if isinstance(cell, str) else cell)]


def _plain(cell: Cell) -> str:
    return "".join(_pieces(cell))


def markup(cell: Cell) -> Markup:
    """A cell as HTML that is safe to put into a page."""
    names = {Strong: "b", Code: "code"}
    return Markup("").join(
        Markup("<{0}>{1}</{0}>").format(names[type(piece)], str(piece)) if type(piece) in names else piece
        for piece in _pieces(cell)
    )


def _marked(cell: Cell) -> str:
    return "".join(map(_marked_piece, _pieces(cell)))


def _marked_piece(piece: str) -> str:
    """Text that Markdown shows as it is, and that ends no cell."""
    if isinstance(piece, Code):
        return "`" + piece.replace("|", r"\|") + "`"
    escaped = re.sub(r"[|<*`]", r"\\\g<0>", piece)
    return f"**{escaped}**" if isinstance(piece, Strong) else escaped
