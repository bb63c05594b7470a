"""Cells of a CSV file, and checks of its columns and rows."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lt_search.errors import Problem, Problems, UserError

LISTED = 10
"""Offending rows or files named in one message; the others are counted."""


@dataclass(frozen=True)
class Cells:
    """A table with a header, without blank lines and without blank cells behind the last named column."""

    columns: tuple[str, ...]
    """(K,) names, in lower case and without blanks around them."""
    numbers: tuple[int, ...]
    """(N,) the line on which each row ends, counted from 1."""
    rows: tuple[tuple[str, ...], ...]
    """(N,) rows of cells without blanks around them; K each after `check_cells`."""

    def column(self, name: str) -> list[str]:
        """(N,) the cells of a column; empty strings if the column does not exist."""
        if name not in self.columns:
            return [""] * len(self.rows)
        index = self.columns.index(name)
        return [row[index] for row in self.rows]


def listing(items: Sequence[object]) -> str:
    """The first `LISTED` items, and how many more there are."""
    more = len(items) - LISTED
    return ", ".join(map(str, items[:LISTED])) + (f" and {more} more" if more > 0 else "")


def without_blank_end(cells: list[str], least: int) -> tuple[str, ...]:
    """The cells without blank ones at their end, but at least the first `least`."""
    end = len(cells)
    while end > least and not cells[end - 1]:
        end -= 1
    return tuple(cells[:end])


def read_cells(table: Path, delimiter: str = ",") -> Cells:
    """The cells of a CSV file.

    Raises:
        UserError: the file cannot be read, is not UTF-8 or not CSV.
    """
    reader = None
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True, delimiter=delimiter)
            columns = without_blank_end([name.strip().lower() for name in next(reader, [])], 0)
            lines = [
                (reader.line_num, without_blank_end([cell.strip() for cell in cells], len(columns)))
                for cells in reader
                if any(cell.strip() for cell in cells)
            ]
    except FileNotFoundError as error:
        raise _error(table, "no such file", "give the path of a CSV file") from error
    except UnicodeDecodeError as error:
        what = f"not UTF-8 text ({error.reason} at byte {error.start})"
        raise _error(table, what, "save the table as CSV in UTF-8") from error
    except csv.Error as error:
        line = reader.line_num if reader else 1
        raise _error(f"{table}, line {line}", f"not CSV ({error})", "save the table as CSV") from error
    except OSError as error:
        raise _error(table, f"cannot be read ({error.strerror})", "give the path of a CSV file") from error
    return Cells(columns, tuple(number for number, _ in lines), tuple(cells for _, cells in lines))


def check_cells(cells: Cells, table: Path, required: Sequence[str], fix: str, *, optional: Sequence[str] = ()) -> None:
    """Checks the shape of a table.

    Args:
        cells: the table.
        table: its file.
        required: columns that must exist, in lower case.
        fix: what to do if one of them is missing.
        optional: further columns that must not be repeated.

    Raises:
        UserError: with every missing or repeated column, rows of another length, or a table without rows.
    """
    problems = Problems()
    place = f"{table}, line 1"
    for name in required:
        if name not in cells.columns:
            found = ", ".join(map(repr, cells.columns)) or "none"
            problems.add(place, f"no column {name!r}; the columns are: {found}", fix)
    for name in (*required, *optional):
        if cells.columns.count(name) > 1:
            problems.add(place, f"{cells.columns.count(name)} columns are named {name!r}", "keep one of them")
    width = len(cells.columns)
    ragged = [number for number, row in zip(cells.numbers, cells.rows, strict=True) if len(row) != width]
    if ragged:
        problems.add(
            str(table),
            f"{len(ragged)} rows do not have {width} cells as the header has: lines {listing(ragged)}",
            "quote cells that contain commas",
        )
    if not cells.rows:
        problems.add(str(table), "no rows below the header", "give one row per image")
    problems.raise_if_any()


def _error(place: Path | str, what: str, fix: str) -> UserError:
    return UserError(Problem(str(place), what, fix))
