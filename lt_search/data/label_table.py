"""The rows of a label table, and every mistake that can be seen in the table alone."""

from __future__ import annotations

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lt_search.data.table import PART_NAMES, PartName
from lt_search.errors import Problem, Problems, UserError

SEPARATOR = "|"
"""Between the labels of one image."""

LISTED = 10
"""Offending rows or files named in one message; the rest is counted."""

_REQUIRED = ("image", "label")
_OPTIONAL = ("patient", "group", "split")

_SPELLINGS: dict[str, PartName] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Row:
    """One image as the table has it; a cell that is blank or whose column is missing is an empty string."""

    line: int
    """Where the row ends in the file, counted from 1."""
    image: str
    """Normalised path, so that two spellings of one file are seen to be the same."""
    labels: tuple[str, ...]
    """Sorted, each once."""
    patient: str
    group: str
    split: str
    """In lower case."""


def listing(items: Sequence[str]) -> str:
    """The first `LISTED` items, and how many more there are."""
    more = len(items) - LISTED
    return ", ".join(items[:LISTED]) + (f" and {more} more" if more > 0 else "")


def read_rows(table: Path) -> list[Row]:
    """The rows of a CSV file; blank lines are skipped.

    Raises:
        UserError: the file cannot be read, is not UTF-8 or not CSV, lacks a column, has rows of another length,
            or no rows.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            columns = [name.strip().lower() for name in next(reader, [])]
            lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except FileNotFoundError as error:
        raise _error(table, "no such file", "give the path of a CSV file") from error
    except UnicodeDecodeError as error:
        what = f"not UTF-8 text ({error.reason} at byte {error.start})"
        raise _error(table, what, "save the table as CSV in UTF-8") from error
    except csv.Error as error:
        raise _error(f"{table}, line {reader.line_num}", f"not CSV ({error})", "save the table as CSV") from error
    except OSError as error:
        raise _error(table, f"cannot be read ({error.strerror})", "give the path of a CSV file") from error
    _check_shape(columns, lines, table)
    return [_row(line, dict(zip(columns, cells, strict=True))) for line, cells in lines]


def check_rows(rows: Sequence[Row], table: Path, problems: Problems) -> None:
    """Adds rows without an image, images listed twice, and a table with fewer than two classes."""
    unnamed = [str(row.line) for row in rows if not row.image]
    if unnamed:
        problems.add(
            str(table), f"{len(unnamed)} rows name no image: lines {listing(unnamed)}", "fill the image column"
        )
    lines_of: defaultdict[str, list[int]] = defaultdict(list)
    for row in rows:
        if row.image:
            lines_of[row.image].append(row.line)
    repeated = [
        f"{image} (lines {', '.join(map(str, sorted(lines)))})" for image, lines in lines_of.items() if len(lines) > 1
    ]
    if repeated:
        problems.add(
            str(table),
            f"{len(repeated)} images are listed more than once: {listing(repeated)}",
            f"keep one row per image; several labels go into one cell, separated by {SEPARATOR}",
        )
    classes = {label for row in rows for label in row.labels}
    if len(classes) < 2:
        found = f"only one class, {classes.pop()!r}" if classes else "no class at all"
        problems.add(
            str(table),
            f"the label column has {found}; there must be at least two",
            "where there is one finding, name its absence as the other class",
        )


def given_split(rows: Sequence[Row], table: Path, problems: Problems) -> list[PartName] | None:
    """The part of each row, or None where the table gives no split; adds to `problems` where it is unusable."""
    if not any(row.split for row in rows):
        return None
    blank = [str(row.line) for row in rows if not row.split]
    if blank:
        problems.add(
            str(table),
            f"{len(blank)} rows have no split while others have one: lines {listing(blank)}",
            "fill the split column, or remove it to have the images divided",
        )
    unknown = Counter(row.split for row in rows if row.split and row.split not in _SPELLINGS)
    if unknown:
        named = [f"{name!r} ({count} rows)" for name, count in unknown.items()]
        problems.add(str(table), f"unknown splits: {listing(named)}", f"use {', '.join(PART_NAMES)}")
    torn = _in_several_splits(rows, lambda row: row.patient)
    if torn:
        problems.add(
            str(table),
            f"{len(torn)} patients are in more than one split: {listing(torn)}",
            "move all images of each to one split, or remove the split column to have them divided",
        )
    return None if blank or unknown else [_SPELLINGS[row.split] for row in rows]


def split_warnings(rows: Sequence[Row]) -> tuple[str, ...]:
    """A sentence on groups that a given split divides.

    Unlike a divided patient this is no mistake: published splits divide near-identical images, and they win.
    """
    torn = _in_several_splits(rows, lambda row: row.group)
    return (f"{len(torn)} groups are in more than one given split: {listing(torn)}",) if torn else ()


def _row(line: int, cells: dict[str, str]) -> Row:
    given = {name: cells.get(name, "").strip() for name in (*_REQUIRED, *_OPTIONAL)}
    return Row(
        line=line,
        image=os.path.normpath(given["image"]) if given["image"] else "",
        labels=tuple(sorted({name.strip() for name in given["label"].split(SEPARATOR)} - {""})),
        patient=given["patient"],
        group=given["group"],
        split=given["split"].lower(),
    )


def _check_shape(columns: Sequence[str], lines: Sequence[tuple[int, Sequence[str]]], table: Path) -> None:
    problems = Problems()
    place = f"{table}, line 1"
    for name in _REQUIRED:
        if name not in columns:
            problems.add(
                place,
                f"no column {name!r}; the columns are: {', '.join(map(repr, columns)) or 'none'}",
                "name the columns image,label[,patient][,group][,split], separated by commas",
            )
    for name in (*_REQUIRED, *_OPTIONAL):
        if columns.count(name) > 1:
            problems.add(place, f"{columns.count(name)} columns are named {name!r}", "keep one of them")
    ragged = [str(line) for line, cells in lines if len(cells) != len(columns)]
    if ragged:
        problems.add(
            str(table),
            f"{len(ragged)} rows do not have {len(columns)} cells as the header has: lines {listing(ragged)}",
            "quote cells that contain commas",
        )
    if not lines:
        problems.add(str(table), "no rows below the header", "give one row per image")
    problems.raise_if_any()


def _in_several_splits(rows: Iterable[Row], key: Callable[[Row], str]) -> list[str]:
    splits: defaultdict[str, set[PartName]] = defaultdict(set)
    for row in rows:
        if key(row) and row.split in _SPELLINGS:
            splits[key(row)].add(_SPELLINGS[row.split])
    return [
        f"{unit} ({', '.join(name for name in PART_NAMES if name in found)})"
        for unit, found in splits.items()
        if len(found) > 1
    ]


def _error(place: Path | str, what: str, fix: str) -> UserError:
    return UserError(Problem(str(place), what, fix))
