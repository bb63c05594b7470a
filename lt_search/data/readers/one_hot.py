"""The class of each image from a table with a column of 0 and 1 for each class, as the ISIC archive publishes them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lt_search.data.csv_cells import Cells, listing
from lt_search.data.readers.layout import AS_PUBLISHED
from lt_search.errors import Problems

Ints = npt.NDArray[np.int64]


def one_hot_classes(table: Cells, classes: Sequence[str], place: str, problems: Problems) -> Ints:
    """(N,) the class of each row; adds rows without exactly one class.

    Args:
        table: its columns are named after the classes, in lower case.
        classes: (K,) in the order of the index that is returned.
        place: the file.
        problems: takes what is wrong.
    """
    columns = np.array([[is_one(cell) for cell in table.column(name.lower())] for name in classes])
    unclear = [table.numbers[index] for index in np.flatnonzero(columns.sum(axis=0) != 1)]
    if unclear:
        problems.add(
            place,
            f"{len(unclear)} rows do not have a 1 for exactly one of {', '.join(classes)}: lines {listing(unclear)}",
            AS_PUBLISHED,
        )
    return np.asarray(columns.argmax(axis=0), np.int64)


def is_one(cell: str) -> bool:
    """Whether a cell is 1, however it is written."""
    try:
        return float(cell) == 1
    except ValueError:
        return False


def report_empty(chosen: Ints, classes: Sequence[str], place: str, problems: Problems) -> None:
    """Adds classes without an image."""
    counts = np.bincount(chosen, minlength=len(classes))
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        problems.add(place, f"{len(empty)} classes have no image: {listing(empty)}", AS_PUBLISHED)


def divided_units(units: Sequence[str], part_of: Ints) -> int:
    """How many units (lesions, patients) have images in more than one part."""
    parts: defaultdict[str, set[int]] = defaultdict(set)
    for unit, part in zip(units, part_of.tolist(), strict=True):
        parts[unit].add(part)
    return sum(len(of_unit) > 1 for of_unit in parts.values())
