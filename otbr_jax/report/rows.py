"""The rows of `results/`, one JSON object per line, and their fields as a table prints them."""

from __future__ import annotations

import errno
import io
import json
import logging
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

from otbr_jax.errors import InputError
from otbr_jax.locks import locked
from otbr_jax.report.former_rows import current
from otbr_jax.report.numbers import NOTHING, formatted, percent

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """One measured row: `place`, its file and line for messages, and the JSON object's `values`."""

    place: str
    values: Mapping[str, Any]


def parse(text: str, *, name: str) -> list[Row]:
    """The rows of a file with one JSON object per line; empty lines are skipped.

    Args:
      text: what the file holds.
      name: the file's name, for messages.

    Raises:
      InputError: if a line is no JSON object, or there are no rows.
    """
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"{name}:{number}"
            try:
                values = json.loads(line, parse_constant=_refuse)
            except ValueError as error:
                raise InputError(f"{place}: expected a JSON object, found a broken line ({error})") from None
            if not isinstance(values, dict):
                raise InputError(f"{place}: expected a JSON object, found {line.strip()[:40]}")
            rows.append(Row(place, current(values)))
    if not rows:
        raise InputError(f"{name}: expected rows, found none")
    return rows


def is_flagged(row: Row, path: str = "verdict") -> bool:
    """Whether the verdict at a path is *yes*; raises InputError if the row has none."""
    return bool(field(row, f"{path}.backdoored") == "yes")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def field(row: Row, path: str) -> Any:
    """The value at a path such as `metrics.victim.acc`; None if it, or what should hold it, is null.

    Raises:
      InputError: if the row has no such field.
    """
    value: Any = row.values
    for part in path.split("."):
        if value is None:
            return None
        if not isinstance(value, Mapping) or part not in value:
            raise InputError(f"{row.place}: expected a field {path}, found none")
        value = value[part]
    return value


def text(row: Row, path: str, *, among: Iterable[str] = ()) -> str:
    """A string field as a table's cell; a hyphen if it is null.

    Raises:
      InputError: if the field is missing, no string, or none of `among`, if there are any.
    """
    value = field(row, path)
    if value is None:
        return NOTHING
    expected = f"one of {[*among]}" if among else "a string"
    if not isinstance(value, str) or (among and value not in among):
        raise InputError(f"{row.place}: {path}: expected {expected}, found {value!r}")
    return " ".join(value.split())


def integer(row: Row, path: str) -> int:
    """A field that is a whole number; raises InputError if it is missing or something else."""
    value = field(row, path)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{row.place}: {path}: expected a whole number, found {value!r}")
    return value


def number(row: Row, path: str, form: str) -> str:
    """A number as a table's cell, formatted by `form`; a hyphen if it is null.

    Raises:
      InputError: if the field is missing, or no finite number.
    """
    return formatted(_finite(row, path), form)


def percents(row: Row, path: str, *metrics: str) -> str:
    """Fractions at `path`.`metric` in per cent, `81.4 / 94.1`; a single hyphen if all are null; raises as `number`."""
    return joined([percent(_finite(row, f"{path}.{metric}")) for metric in metrics])


def joined(cells: Sequence[str]) -> str:
    """Cells in one; a single hyphen if none holds anything."""
    return " / ".join(cells) if set(cells) != {NOTHING} else NOTHING


def latest(rows: Iterable[Row], *paths: str) -> list[Row]:
    """Of all rows with the same values at these paths the last one, in the order of their first ones."""
    return [group[-1] for group in grouped(rows, *paths).values()]


def grouped(rows: Iterable[Row], *paths: str) -> dict[tuple[str, ...], list[Row]]:
    """The rows by their texts at these paths, in order."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(text(row, path) for path in paths), []).append(row)
    return groups


def _finite(row: Row, path: str) -> float | None:
    value = field(row, path)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{row.place}: {path}: expected a finite number or null, found {value!r}")
    return value


def mend(path: pathlib.Path) -> None:
    """Cuts off the half of a row that a killed process left at the end of a file; makes the file if it is missing.

    Raises InputError if it cannot be written.
    """
    with _alone(path):
        pass


def read_rows(path: pathlib.Path) -> list[Row]:
    """All rows of a file that others may append to, none of it half-written; raises as `mend` and `parse`."""
    with _alone(path) as file:
        return _rows(file, path)


def append_row(
    path: pathlib.Path, row: Mapping[str, Any], *, unless: Callable[[Mapping[str, Any]], bool] | None = None
) -> bool:
    """Appends a row, whoever else appends to the same file.

    Args:
      path: the file; made if it is missing.
      row: the row's values.
      unless: is asked about every row of the file; if it says yes to one, nothing is appended.

    Returns:
      Whether it was appended.

    Raises:
      InputError: if the file cannot be written; with `unless` also if it cannot be read.
    """
    with _alone(path) as file:
        if unless is not None and any(unless(other.values) for other in _rows(file, path)):
            return False
        end = file.seek(0, os.SEEK_END)
        try:
            content = (json.dumps(row) + "\n").encode()
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)  # no half of a row
            raise
    return True


def leases_folder(path: pathlib.Path) -> pathlib.Path:
    """The hidden folder of the locks of a file of rows: beside it, where all who share the file find it."""
    real = path.resolve()
    return real.parent / ".leases" / real.name


@contextmanager
def _alone(path: pathlib.Path) -> Iterator[io.FileIO]:
    """A file of whole rows, for this process alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            locked(leases_folder(path) / "rows.lock", name="--results"),
            open(path, "ab+", buffering=0) as file,
        ):
            _mend(file, path)
            yield file
    except OSError as error:
        raise InputError(f"--results: expected a file that can be written, found {path}: {error.strerror}") from None


def _mend(file: io.FileIO, path: pathlib.Path) -> None:
    file.seek(0)
    whole, newline, last = file.readall().rpartition(b"\n")
    if last and _is_json(last):
        file.write(b"\n")
    elif last:
        file.truncate(len(whole) + len(newline))
        log.warning("%s: the last row is half-written and will be measured again: %r", path, last[:60])


def _rows(file: io.FileIO, path: pathlib.Path) -> list[Row]:
    file.seek(0)
    content = file.readall().decode()
    return parse(content, name=str(path)) if content else []


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
