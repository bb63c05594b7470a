"""A split that published lists give: which list each image is in, and how lists and table contradict each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lt_search.data.csv_cells import listing
from lt_search.data.readers.layout import AS_PUBLISHED, report_repeated
from lt_search.errors import Problems

UNLISTED = -1

Ints = npt.NDArray[np.int64]


def part_of_lists(
    images: Sequence[str],
    lists: Sequence[Sequence[str]],
    places: Sequence[str],
    table: str,
    problems: Problems,
) -> Ints:
    """(N,) the number of the list that each image is in, `UNLISTED` for none.

    Adds images that are in no list, in two, twice in one, or not in the table.

    Args:
        images: (N,) unique names.
        lists: the names in each list.
        places: the file of each list.
        table: the file that `images` are from.
        problems: takes what is wrong.
    """
    row_of = {image: row for row, image in enumerate(images)}
    listed = np.full(len(images), UNLISTED, np.int64)
    for number, (place, found) in enumerate(zip(places, lists, strict=True)):
        report_repeated(found, place, problems)
        unknown = [name for name in found if name not in row_of]
        if unknown:
            what = f"{len(unknown)} images are not in {Path(table).name}: {listing(unknown)}"
            problems.add(place, what, AS_PUBLISHED)
        rows = np.array(sorted({row_of[name] for name in found if name in row_of}), np.int64)
        twice = [images[row] for row in rows[listed[rows] != UNLISTED].tolist()]
        if twice:
            problems.add(place, f"{len(twice)} images are in another list, too: {listing(twice)}", AS_PUBLISHED)
        listed[rows] = number
    left = [images[row] for row in np.flatnonzero(listed == UNLISTED).tolist()]
    if left:
        names = ", ".join(Path(place).name for place in places)
        problems.add(table, f"{len(left)} images are in none of {names}: {listing(left)}", AS_PUBLISHED)
    return listed
