"""Rows of a label table, and the checks that need the table alone."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lt_search.data.csv_cells import check_cells, listing, read_cells
from lt_search.data.table import PART_NAMES, PartName
from lt_search.errors import Problems

SEPARATOR = "|"
"""Between the labels of one image."""

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
    """A row of the table; a cell that is blank or whose column is missing is an empty string."""

    line: int
    """The line on which the row ends, counted from 1."""
    image: str
    """Normalised path, so that two spellings of one file are equal."""
    labels: tuple[str, ...]
    """Sorted, each once."""
    patient: str
    group: str
    split: str
    """In lower case."""


def read_rows(table: Path) -> list[Row]:
    """The rows of a CSV file; blank lines are skipped.

    Raises:
        UserError: the file cannot be read, is not UTF-8 or not CSV, lacks a column, has rows of another length,
            or no rows.
    """
    cells = read_cells(table)
    fix = "name the columns image,label[,patient][,group][,split], separated by commas"
    check_cells(cells, table, _REQUIRED, fix, optional=_OPTIONAL)
    columns = [cells.column(name) for name in (*_REQUIRED, *_OPTIONAL)]
    return [_row(*row) for row in zip(cells.numbers, *columns, strict=True)]


def check_rows(rows: Sequence[Row], table: Path, problems: Problems, *, least_classes: int = 2) -> None:
    """Adds rows without an image, images listed twice, and a table with fewer classes than `least_classes` (1 or 2)."""
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
    if len(classes) < least_classes:
        found = f"only one class, {classes.pop()!r}" if classes else "no class at all"
        problems.add(
            str(table),
            f"the label column has {found}; there must be at least {'two' if least_classes == 2 else 'one'}",
            "where there is one finding, name its absence as the other class",
        )


def given_split(rows: Sequence[Row], table: Path, problems: Problems) -> list[PartName] | None:
    """The split of each row, or None if the table gives none or it is unusable, which is added to `problems`."""
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
    divided = _in_several_splits(rows, lambda row: row.patient)
    if divided:
        problems.add(
            str(table),
            f"{len(divided)} patients are in more than one split: {listing(divided)}",
            "move all images of each to one split, or remove the split column to have them divided",
        )
    return None if blank or unknown else [_SPELLINGS[row.split] for row in rows]


def split_warnings(rows: Sequence[Row]) -> tuple[str, ...]:
    """A warning on groups that a given split divides.

    Unlike a divided patient this is not an error: published splits divide near-identical images, and are kept.
    """
    divided = _in_several_splits(rows, lambda row: row.group)
    return (f"{len(divided)} groups are in more than one given split: {listing(divided)}",) if divided else ()


def _row(line: int, image: str, label: str, patient: str, group: str, split: str) -> Row:
    return Row(
        line=line,
        image=os.path.normpath(image) if image else "",
        labels=tuple(sorted({name.strip() for name in label.split(SEPARATOR)} - {""})),
        patient=patient,
        group=group,
        split=split.lower(),
    )


def _in_several_splits(rows: Iterable[Row], key_of: Callable[[Row], str]) -> list[str]:
    splits: defaultdict[str, set[PartName]] = defaultdict(set)
    for row in rows:
        if key_of(row) and row.split in _SPELLINGS:
            splits[key_of(row)].add(_SPELLINGS[row.split])
    return [
        f"{key} ({', '.join(name for name in PART_NAMES if name in found)})"
        for key, found in splits.items()
        if len(found) > 1
    ]
